"""Rows that are in memory: whatever holds them, the run is that of a file with the same rows; and what `tune` tells."""

import json
import logging

import numpy as np
import pytest
import yaml

import bbt
from bbt.errors import ConfigError, DataError, LabelWordError
from bbt.tasks import Columns, Example
from bbt.tasks.data import share_out
from bbt.tasks.tables import records_of

GOOD = ["a film so great", "a warm and funny story", "I liked it , it was great", "great acting and a great plot"]
BAD = ["a film so bad", "the plot is worse", "I did not like it , it was slow", "the acting is bad"]
ROWS = [(text, mood) for pair in zip(GOOD, BAD, strict=True) for text, mood in zip(pair, ("great", "bad"), strict=True)]
RECORDS = [{"body": text, "mood": mood, "id": i} for i, (text, mood) in enumerate(ROWS)]
ROWS_OF_TEST = [("a great film", "great"), ("a bad story", "bad")]
RECORDS_OF_TEST = [{"body": text, "mood": mood} for text, mood in ROWS_OF_TEST]
COLUMNS = {"text": "body", "label": "mood"}
SEARCH = {
    "prompt": {"n_prompt_tokens": 2, "n_screened": 1, "intrinsic_dim": 4},
    "optimizer": {"population_size": 20},
    "budget": {"queries": 40, "dev_every": 20},
}


@pytest.fixture
def tune(tiny_folder):
    """`bbt.tune` on the tiny BERT: a short search unless told otherwise."""

    def made(config=None, **more):
        model = {"name": str(tiny_folder("bert")), "options": {"device": "cpu", "precision": "fp32"}}
        return bbt.tune(SEARCH if config is None else config, model=model, **more)

    return made


def facts(outcome):
    prompt = outcome.classifier.prompt
    return outcome.result["test"], outcome.result["selected"], prompt.embeddings.tobytes(), prompt.label_words


def holders(tmp_path):
    """Name -> the same eight rows, and how they are named."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    yield "dicts", RECORDS, COLUMNS
    yield "tuples", ROWS, {}
    yield "iterator", iter(ROWS), {}
    yield "array", np.array(ROWS), {}
    yield "path", tmp_path / "rows.jsonl", COLUMNS
    yield "name of a path", str(tmp_path / "rows.jsonl"), COLUMNS
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    yield "frame", pandas.DataFrame(RECORDS), COLUMNS
    yield "categories", pandas.DataFrame(RECORDS).astype({"mood": "category"}), COLUMNS
    yield "data set", datasets.Dataset.from_list(RECORDS), COLUMNS
    mood = datasets.ClassLabel(names=["bad", "great"])
    yield "class labels", datasets.Dataset.from_list(RECORDS).cast_column("mood", mood), COLUMNS


def test_whatever_holds_the_rows_the_run_is_the_same(tune, tmp_path):
    expected = None
    for name, rows, columns in holders(tmp_path):
        outcome = tune(train=rows, test=RECORDS_OF_TEST if columns else ROWS_OF_TEST, **columns)
        assert outcome.config.task.label_names == ("bad", "great"), name
        expected = expected or facts(outcome)
        assert facts(outcome) == expected, name


def test_the_run_is_that_of_a_config_with_files(tune, tmp_path):
    for part, records in (("train", RECORDS[:4]), ("dev", RECORDS[4:6]), ("test", RECORDS[6:])):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    files = {part: str(tmp_path / f"{part}.jsonl") for part in ("train", "dev", "test")}
    task = {"name": "moods", "template": "{prompt} {text} it was {mask}", "label_words": ["great", "bad"]}
    data = {"source": "files", "k": "all", "columns": COLUMNS, "labels": ["great", "bad"], **files}
    expected = tune({**SEARCH, "task": task, "data": data})
    assert facts(tune(task=task, train=RECORDS[:4], dev=RECORDS[4:6], test=RECORDS[6:], **COLUMNS)) == facts(expected)


def test_an_outcome_of_memory_is_saved_and_predicts(tune, tmp_path):
    outcome = tune(train=ROWS)
    outcome.save(tmp_path / "kept")
    predictor = bbt.Predictor(tmp_path / "kept")
    texts = [text for text, _ in ROWS]
    probabilities = predictor.predict_proba(texts)
    said = predictor.predict(texts)
    assert [list(one["probabilities"].values()) for one in said] == probabilities.tolist()
    assert predictor.predict_proba([]).shape == (0, 2)
    assert predictor.config.data.source == "memory"
    with pytest.raises(ConfigError, match="are not kept; name a file"):
        bbt.tune(predictor.config)


def test_a_built_in_task_takes_its_names_or_numbers(tune):
    names, numbers = ("negative", "positive"), (0, 1)
    by_name = tune(
        task="sst2", method="manual", config={}, train=[(text, names[mood == "great"]) for text, mood in ROWS]
    )
    by_number = tune(task="sst2", method="manual", config={}, train=[(t, numbers[m == "great"]) for t, m in ROWS])
    told = tune(task="sst2", method="manual", config={}, train=ROWS, labels=["bad", "great"])
    assert facts(by_name) == facts(by_number) == facts(told)
    with pytest.raises(DataError, match="its labels are bad, great; the task's are negative, positive"):
        tune(task="sst2", train=ROWS)


def test_pairs(tune):
    rows = [(text, "it was slow", mood) for text, mood in ROWS]
    outcome = tune({}, method="manual", train=rows, text_pair="other")
    assert "{text_pair}" in outcome.config.task.template
    dicts = [{"text_pair": "it was slow", "text": text, "label": int(mood == "bad")} for text, mood in ROWS]
    task = {"name": "mrpc", "label_words": ["great", "bad"]}
    assert tune({}, task=task, method="manual", train=dicts).config.data.columns.text_pair == "text_pair"
    with pytest.raises(ConfigError, match="reads one text a row"):
        tune({}, task={"template": "{text} {mask}"}, method="manual", train=rows, text_pair="other")


def test_a_config_may_be_a_path_and_is_overridden(tune, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SEARCH))
    for path in (tmp_path / "run.yaml", str(tmp_path / "run.yaml")):
        outcome = tune(path, train=ROWS, seed=3, budget=30)
        assert outcome.config.seed == 3
        assert outcome.config.sections["budget"] == {"queries": 30, "dev_every": 20}


def test_a_share_of_each_class_is_dev():
    rows = [Example(f"{i}", int(i >= 12)) for i in range(16)] + [Example("alone", 2)]
    train, dev = share_out(rows, 0.25, seed=1)
    assert [sum(e.label == label for e in dev) for label in range(3)] == [3, 1, 0]
    assert sorted([*train, *dev], key=rows.index) == rows
    assert share_out(rows, 0.25, seed=1) == (train, dev) != share_out(rows, 0.25, seed=2)
    with pytest.raises(DataError, match="no row can be spared"):
        share_out([Example("a", 0), Example("b", 1)], 0.5, seed=0)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"train": {"train": ROWS}}, DataError, r"train is a dict, expected a DataFrame, .* train\['train'\]"),
        ({"train": 3}, DataError, "train is a int, expected a DataFrame"),
        (
            {"train": [("a", "b", "c")]},
            DataError,
            r"train row 1 is 3 values, expected a dict, or a tuple \(text, label\)",
        ),
        ({"train": ["a"]}, DataError, "train row 1 is a str"),
        ({"train": RECORDS}, DataError, "train row 1: no column 'label'. Columns here: body, mood, id"),
        ({"train": [*ROWS, ("a", None)]}, DataError, "train row 9: this row has no value for 'label'"),
        ({"train": ROWS, "test": [("a", "worse")]}, DataError, "test row 1: unknown label 'worse'"),
        ({"train": []}, DataError, "train holds no rows"),
        ({"test": ROWS}, ConfigError, "test without train"),
        ({"train": ROWS, "task": "sst3"}, ConfigError, None),
        (
            {"train": [(t, m.replace("great", "splendid")) for t, m in ROWS]},
            LabelWordError,
            "the class names are taken",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(given, error, says, tune):
    with pytest.raises(error, match=says):
        tune(**given)


def test_a_frame_with_nothing_in_a_cell_or_two_columns_of_one_name():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": pandas.array(["a", None], dtype="string"), "label": [1, 2]})
    assert [record["text"] for _, record in records_of(frame, Columns(), "train")] == ["a", None]
    with pytest.raises(DataError, match="train has two columns of one name: text, text"):
        list(records_of(frame.set_axis(["text", "text"], axis=1), Columns(), "train"))


def test_rows_without_a_label_of_a_data_set_are_left_out(tune):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "great"])}
    )
    rows = [{"text": text, "label": ["bad", "great"].index(mood)} for text, mood in ROWS] + [{"text": "?", "label": -1}]
    with pytest.warns(UserWarning, match=r"train: 1 of 9 rows have no label \(-1\)"):
        tune({}, method="manual", train=datasets.Dataset.from_list(rows, features=features))


def test_the_log_tells_what_a_run_does(tune, caplog):
    with caplog.at_level(logging.INFO, logger="bbt"):
        tune(train=ROWS, test=ROWS_OF_TEST)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("cma-separable on rows (4 train, 4 dev and 2 test rows), model ")
    assert said[1].startswith("20 queries: best dev metric ")
    assert any(line.startswith("selected: ") for line in said)
    assert said[-1].startswith("test, tuned: accuracy ")


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_shows_the_progress_on_a_terminal_unless_told_otherwise(progress, tune, monkeypatch, capsys):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    tune(train=ROWS, progress=progress)
    shown = capsys.readouterr().err
    assert ("40/40" in shown and "train loss" in shown) == progress
