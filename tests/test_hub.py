import sys

import pytest

from bbt.errors import ConfigError, DataError
from bbt.settings import DataConfig
from bbt.tasks import TASKS, Columns, Example, Task, Template
from bbt.tasks.builtin import builtin_task
from bbt.tasks.configured import make_split
from bbt.tasks.data import k_shot
from bbt.tasks.hub import hub_examples, in_label_order

LABELS = ("0", "1")


def test_trec_has_no_data_set_on_the_hub():
    with pytest.raises(ConfigError, match=r"trec has no data set on the hub .*data\.path"):
        make_split(DataConfig(source="huggingface"), builtin_task("trec", "masked"), seed=0)


def test_without_the_datasets_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'bbt-prompt\[datasets\]'"):
        make_split(DataConfig(source="huggingface"), builtin_task("sst2", "masked"), 0)


@pytest.fixture
def data_set(tmp_path):
    """name, rows, label names -> a local data set in Hugging Face's format, with one split a call."""
    datasets = pytest.importorskip("datasets")

    def make(split, rows, names=None):
        kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
        features = datasets.Features({"text": datasets.Value("string"), "label": kind})
        columns = {"text": [row.text for row in rows], "label": [row.label for row in rows]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "set" / f"{split}.parquet")
        return str(tmp_path / "set")

    (tmp_path / "set").mkdir()
    return make


def own(*label_names):
    return Task("own", Template("{prompt} {text} {mask}"), label_names, label_names)


def rows_of(name, n=80):
    return [Example(f"{name} {i}", i % 2) for i in range(n)]


def config(path, **more):
    return DataConfig(source="huggingface", path=path, k=4, **more)


def test_a_local_hugging_face_data_set_is_split_as_files_are(data_set):
    path = data_set("train", rows_of("train"))
    data_set("test", rows_of("test"))
    split = make_split(config(path), own("a", "b"), seed=3)
    assert (split.train, split.dev) == k_shot(rows_of("train"), 4, 3, "ab")
    assert split.test == rows_of("test")
    with pytest.raises(DataError, match=r"cannot load .*\[dev\]"):
        make_split(config(path, splits=("dev", "test")), own("a", "b"), seed=3)


def test_a_third_split_is_dev(data_set):
    for part in ("train", "validation", "test"):
        path = data_set(part, rows_of(part))
    split = make_split(config(path, splits=("train", "validation", "test")), own("a", "b"), seed=3)
    assert split.dev == rows_of("validation")
    assert split.train == k_shot(rows_of("train"), 4, 3, "ab")[0]


def test_unlabelled_rows_are_left_out_and_counted(data_set):
    path = data_set("test", [*rows_of("test"), Example("x", -1), Example("y", -1)])
    with pytest.warns(UserWarning, match=r"\[test\]: 2 of 82 rows have no label \(-1\) and are left out"):
        assert hub_examples(path, None, "test", Columns(), ("a", "b")) == rows_of("test")


def test_a_split_without_any_label_is_an_error_that_names_another(data_set):
    path = data_set("train", rows_of("train"))
    data_set("test", [Example(str(i), -1) for i in range(9)])
    with pytest.raises(
        DataError, match=r"set\[test\]: all 9 rows have the label -1.*data\.splits, e\.g\. \[train, val"
    ):
        make_split(config(path), own("a", "b"), seed=3)


def test_label_names_in_another_order_are_matched_by_name(data_set):
    path = data_set("test", rows_of("test"), names=("Positive", "Negative"))
    with pytest.warns(UserWarning, match="another order than the task's .0 'Positive', 1 'Negative'.*matched by name"):
        examples = hub_examples(path, None, "test", Columns(), ("negative", "positive"))
    assert [e.label for e in examples] == [1 - row.label for row in rows_of("test")]


def test_label_names_in_the_same_order_need_no_word(data_set):
    path = data_set("test", rows_of("test"), names=("negative", "POSITIVE"))
    assert hub_examples(path, None, "test", Columns(), ("negative", "positive")) == rows_of("test")


def test_label_names_that_are_not_the_task_s_are_refused_until_the_user_says_which_is_which(data_set):
    path = data_set("train", rows_of("train"), names=("bad", "good"))
    data_set("test", rows_of("test"), names=("bad", "good"))
    task = own("yes", "no")
    with pytest.raises(DataError, match=r"labels are 0 'bad', 1 'good'; the task's are yes, no\. Say .*data\.labels"):
        make_split(config(path), task, seed=0)
    for labels in (("good", "bad"), ("1", "0")):
        split = make_split(config(path, labels=labels), task, seed=0)
        assert [e.label for e in split.test] == [1 - row.label for row in rows_of("test")]


def test_labels_that_contradict_the_data_set_s_names_are_refused(data_set):
    path = data_set("test", rows_of("test"), names=("no", "yes"))
    for labels in (("0", "1"), ("no", "yes")):
        with pytest.raises(DataError, match=r"data\.labels takes 'no' for the task's label 'yes'"):
            hub_examples(path, None, "test", Columns(), ("yes", "no"), labels)


HUB_NAMES = {  # ClassLabel names as the hub's data set cards give them
    "sst2": ("negative", "positive"),
    "yelp": ("1", "2"),
    "agnews": ("World", "Sports", "Business", "Sci/Tech"),
    "mrpc": ("not_equivalent", "equivalent"),
    "rte": ("entailment", "not_entailment"),
    "snli": ("entailment", "neutral", "contradiction"),
}


@pytest.mark.parametrize("name", HUB_NAMES)
def test_built_in_tasks_know_their_data_sets_labels(name):
    spec, names = TASKS[name], HUB_NAMES[name]
    order = in_label_order(names, spec.label_names, None, spec.hub.labels, name)
    assert order == [str(i) for i in range(len(names))]


def test_trec_s_labels_stand_in_another_order_on_the_hub():
    names = ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")
    with pytest.warns(UserWarning, match="matched by name"):
        order = in_label_order(names, TASKS["trec"].label_names, None, None, "trec[train]")
    assert [names[int(i)] for i in order] == list(TASKS["trec"].label_names)
