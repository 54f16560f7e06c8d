import io
import sys
from types import ModuleType, SimpleNamespace

import pytest

from bbt.runs.progress import Bar
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


def test_other_tests_stand_in_the_table_by_their_names():
    """With the metrics that they share with the run's own."""
    also = {"yelp": {"accuracy": 0.5, "examples": 1200}, "strangers": {"token_f1": 0.25, "examples": 8}}
    table = result_rows({**RESULT, "also_test": also})
    assert table[: -len(also)] == result_rows(RESULT)
    assert [row[0] for row in table[-2:]] == ["tuned, on yelp (1,200 rows)", "tuned, on strangers (8 rows)"]
    assert {len(row) for row in table} == {len(table[0])}
    assert (table[-2][1:], table[-1][1:]) == (("-", "50.00"), ("-", "-"))


def test_costs_are_printed_with_train_and_dev_queries_apart():
    rows = dict(cost_rows(RESULT))
    assert (rows["train queries"], rows["dev queries"], rows["examples scored"]) == ("8,000", "162", "261,184")
    assert rows["tuned numbers"] == "500"
    assert (rows["seconds"], rows["of them in the optimizer"]) == ("5.0", "1.0")
    assert rows["queries per second"] == "2000.0"


def test_the_selected_candidate_is_named():
    line = selected_line(RESULT)
    assert line == "selected: mean at query 300, dev metric 93.75, dev loss 0.2500"


@pytest.mark.parametrize(
    ("shell", "shown"), [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)]
)
def test_a_bar_is_drawn_in_a_notebook_and_not_where_a_package_of_notebooks_is_imported(shell, shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = Bar()
    assert bar.bar.disable is not shown
    bar.close()
