from bbt.runs.report import cost_rows, result_rows, selected_line

RESULT = {
    "test": {"manual": {"f1": 0.5, "accuracy": 0.25}, "tuned": {"f1": 0.875, "accuracy": 0.75}},
    "selected": {"who": "mean", "metric": 0.9375, "loss": 0.25, "train_queries": 300},
    "n_parameters": 500,
    "cost": {
        "train_queries": 8000,
        "dev_queries": 162,
        "examples": 261184,
        "bytes_up": 1000,
        "bytes_down": 2000,
        "backend_seconds": 3.0,
        "optimizer_seconds": 1.0,
        "seconds": 4.0,
    },
    "peak_memory_mb": 1234.5,
}


def test_the_closing_table_has_each_metric_of_each_prompt_in_percent():
    assert result_rows(RESULT) == [
        ("prompt", "test f1", "test accuracy"),
        ("manual", "50.00", "25.00"),
        ("tuned", "87.50", "75.00"),
    ]


def test_costs_are_printed_with_train_and_dev_queries_apart():
    rows = dict(cost_rows(RESULT))
    assert (rows["train queries"], rows["dev queries"], rows["examples scored"]) == ("8,000", "162", "261,184")
    assert rows["tuned numbers"] == "500"
    assert (rows["seconds"], rows["of them in the optimizer"]) == ("5.0", "1.0")
    assert rows["queries per second"] == "2000.0"


def test_the_selected_candidate_is_named():
    line = selected_line(RESULT)
    assert line == "selected: mean at query 300, dev metric 93.75, dev loss 0.2500"
