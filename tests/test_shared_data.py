"""The configs of configs/shared-data, on the rows they name; skipped where those are not at hand."""

from collections import Counter
from pathlib import Path

import pytest

from bbt.config import load_config
from bbt.tasks.configured import make_split, make_task

ROOT = Path(__file__).parent.parent
CONFIGS = {path.stem: path for path in sorted((ROOT / "configs/shared-data").glob("*.yaml"))}
# name -> test rows, labels
KNOWN = {
    "sst2": (872, 2),
    "agnews": (7600, 4),
    "trec": (500, 6),
    "mrpc": (408, 2),
    "snli": (9824, 3),
    "rte": (277, 2),
    "yelp": (2000, 2),
    "dbpedia": (2800, 14),
}


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.chdir(ROOT)

    def load(name):
        config = load_config(CONFIGS[name])
        if not Path(str(config.data.train)).is_file():
            pytest.skip(f"the shared data is not here: {config.data.train}")
        task = make_task(config.task, "masked")
        return config, task, make_split(config.data, task, seed=0)

    return load


def test_every_task_has_a_config():
    assert set(CONFIGS) == set(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_the_rows_are_what_the_note_says(name, problem):
    config, task, split = problem(name)
    n_test, n_labels = KNOWN[name]
    assert len(split.test) == n_test
    assert f"{n_test:,}" in config.data.note
    assert len(task.label_names) == n_labels
    for rows in (split.train, split.dev):
        assert Counter(example.label for example in rows) == dict.fromkeys(range(n_labels), 16)
    assert {example.label for example in split.test} == set(range(n_labels))
    assert all(bool(example.text_pair) == task.template.takes_pair for example in split.test)


@pytest.mark.parametrize(
    ("name", "start", "label"),
    [
        ("trec", "How far is it from Denver", "NUM"),
        ("trec", "What county is Modesto", "LOC"),
        ("agnews", "Fears for T N pension", "Business"),
        ("snli", "This church choir sings to the masses", "neutral"),
        ("rte", "Dana Reeve, the widow of the actor", "not_entailment"),
        ("mrpc", "He said the foodservice pie business", "equivalent"),
    ],
)
def test_labels_mean_what_their_names_say(name, start, label, problem):
    _, task, split = problem(name)
    found = next(example for example in split.test if example.text.startswith(start))
    assert task.label_names[found.label] == label


def test_train_dev_and_test_share_no_row(problem):
    _, _, split = problem("snli")
    pairs = [{(e.text, e.text_pair) for e in rows} for rows in (split.train, split.dev, split.test)]
    assert len(set.union(*pairs)) == sum(map(len, pairs))
