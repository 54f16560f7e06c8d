import json
from pathlib import Path

import numpy as np
import pytest

from bbt.config import make_config
from bbt.errors import ConfigError, DataError
from bbt.settings import DataConfig
from bbt.tasks import TASKS, Columns, Example, Task, Template
from bbt.tasks.builtin import builtin_task
from bbt.tasks.configured import make_split
from bbt.tasks.data import bundled_splits, bundled_tasks, bundled_test, draw_split, k_shot
from bbt.tasks.examples import read_examples

SHARED = Path(__file__).parents[2] / "shared" / "data"
BUNDLED = ("agnews", "sst2")
LABELS = ("0", "1")


def written(path, rows, columns=("text", "label")):
    """The rows as a jsonl file."""
    values = [(row.text, row.label, row.text_pair)[: len(columns)] for row in rows]
    path.write_text("".join(json.dumps(dict(zip(columns, v, strict=True))) + "\n" for v in values), encoding="utf-8")
    return path


SINGLE = Task("own", Template("{prompt} {text} ? {mask}"), ("no", "yes"), ("no", "yes"))


def many(n, n_labels, seed=0):
    labels = np.random.default_rng(seed).integers(0, n_labels, n)
    return [Example(f"row {i}", int(label)) for i, label in enumerate(labels)]


def reference_k_shot(examples, k, seed, n_labels):
    """The released code's rule, word for word: shuffle a list of indices, then count per class."""
    np.random.seed(seed)
    indices = list(range(len(examples)))
    np.random.shuffle(indices)
    train, dev = [], []
    taken = dict.fromkeys(range(n_labels), 0)
    for index in indices:
        label = examples[index].label
        if taken[label] < k:
            train.append(examples[index])
        elif taken[label] < 2 * k:
            dev.append(examples[index])
        taken[label] += 1
    return train, dev


@pytest.mark.parametrize("seed", [0, 8, 42])
@pytest.mark.parametrize("k", [1, 4])
def test_k_shot_is_the_reference_rule(seed, k):
    examples = many(200, 3)
    assert k_shot(examples, k, seed, "abc") == reference_k_shot(examples, k, seed, 3)


def test_k_shot_splits_do_not_overlap_and_leave_numpys_generator_alone():
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    train, dev = k_shot(many(100, 2), 5, 1, "ab")
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert not set(train) & set(dev)
    for part in (train, dev):
        np.testing.assert_array_equal(np.bincount([e.label for e in part]), [5, 5])


def test_a_class_with_too_few_examples_is_named():
    examples = [Example(str(i), 0) for i in range(20)] + [Example("x", 1)] * 5
    with pytest.raises(DataError, match="class 'rare' has 5 examples, 4-shot needs 8"):
        k_shot(examples, 4, 0, ("common", "rare"))


def files(tmp_path, **more):
    """A config of train and test files, and the rows in them; `more` are rows of other parts, or keys."""
    parts = {"train": many(60, 2), "test": [Example(f"test {i}", i % 2) for i in range(6)]}
    parts |= {key: value for key, value in more.items() if isinstance(value, list)}
    paths = {name: str(written(tmp_path / f"{name}.jsonl", rows)) for name, rows in parts.items()}
    keys = {key: value for key, value in more.items() if not isinstance(value, list)}
    return DataConfig(source="files", **paths, **keys), parts


def test_files_are_split_as_k_shot_splits_them(tmp_path):
    config, rows = files(tmp_path, k=3)
    split = make_split(config, SINGLE, seed=5)
    assert (split.train, split.dev) == k_shot(rows["train"], 3, 5, "ab")
    assert split.test == rows["test"]


DEV = [Example(f"dev {i}", i % 2) for i in range(10)]


def test_an_own_dev_file_is_dev_as_it_stands_and_train_is_drawn_as_ever(tmp_path):
    config, rows = files(tmp_path, k=3, dev=DEV)
    split = make_split(config, SINGLE, seed=5)
    assert split.dev == DEV
    assert split.train == k_shot(rows["train"], 3, 5, "ab")[0]


def test_all_rows_train_where_k_is_all(tmp_path):
    config, rows = files(tmp_path, k="all", dev=DEV)
    split = make_split(config, SINGLE, seed=5)
    assert (split.train, split.dev, split.test) == (rows["train"], DEV, rows["test"])


def test_all_rows_without_a_dev_file_leave_none_for_dev(tmp_path):
    with pytest.raises(DataError, match=r"k: all leaves no row for dev: name your own under data\.dev"):
        make_split(files(tmp_path, k="all")[0], SINGLE, seed=5)


@pytest.mark.parametrize(("k", "needed"), [("all", "k: all needs 1"), (4, "4-shot needs 4")])
def test_a_train_file_that_lacks_a_class_is_named_with_it(tmp_path, k, needed):
    config, _ = files(tmp_path, k=k, dev=DEV, train=[Example(f"row {i}", 0) for i in range(9)])
    with pytest.raises(DataError, match=f"class 'yes' has 0 examples, {needed}"):
        make_split(config, SINGLE, seed=5)


@pytest.mark.parametrize("k", [0, -1, True, 1.5, "most", None])
def test_another_k_is_refused_in_one_sentence(k):
    with pytest.raises(ConfigError, match=r"^config: data\.k: .*whole number of at least 1, or all, got"):
        make_config({"data": {"k": k}})


def test_rows_that_stand_in_several_parts_are_counted_in_one_warning():
    rows = [Example(f"row {i}", i % 2) for i in range(40)]
    with pytest.warns(UserWarning, match="overlap") as said:
        draw_split(rows[:20], [*rows[:3], *rows[30:]], [*rows[18:22], *rows[33:35]], "all", 0, "ab")
    (warning,) = said
    assert str(warning.message) == (
        "the parts of the data overlap: 3 of 13 dev rows stand in train, 2 of 6 test rows stand in train, 2 of 6 test "
        "rows stand in dev; scores on them flatter."
    )


def test_a_second_text_tells_rows_apart():
    first, second = ([Example("same", i % 2, f"{part} {i}") for i in range(4)] for part in ("train", "test"))
    draw_split(first, [Example("same", 0, "dev")], second, "all", 0, "ab")


@pytest.mark.parametrize("given", [{"train": "x.csv"}, {"dev": "x.csv"}, {"path": "glue"}])
def test_data_that_would_not_be_read_are_refused(given):
    with pytest.raises(ConfigError, match=rf"data\.{next(iter(given))} is not read with data\.source: bundled"):
        make_split(DataConfig(**given), builtin_task("sst2", "masked"), seed=0)


@pytest.mark.parametrize(("task", "n_labels", "n_test"), [("sst2", 2, 872), ("agnews", 4, 7600)])
def test_bundled_splits_hold_k_rows_a_class(task, n_labels, n_test):
    names = TASKS[task].label_names
    splits = [bundled_splits(task, 16, seed, names) for seed in (0, 9, 13, 42, 50, 60)]
    for split in splits:
        for part in (split.train, split.dev):
            np.testing.assert_array_equal(np.bincount([e.label for e in part]), [16] * n_labels)
        assert len(split.test) == n_test
    assert len({tuple(split.train) for split in splits}) == len(splits)
    assert {e.label for e in splits[0].test} == set(range(n_labels))


def test_fewer_shots_are_the_first_of_the_sixteen():
    names = TASKS["sst2"].label_names
    few, all_ = bundled_splits("sst2", 8, 42, names), bundled_splits("sst2", 16, 42, names)
    for label in (0, 1):
        rows = [e for e in all_.train if e.label == label]
        assert [e for e in few.train if e.label == label] == rows[:8]
        assert [e for e in few.dev if e.label == label] == rows[8:]


@pytest.mark.parametrize(("seed", "k"), [(11, 16), (0, 17), (0, "all")])
def test_a_seed_or_k_that_is_not_shipped_is_an_error_that_says_what_is(seed, k):
    with pytest.raises(DataError, match=r"seeds 0, 1, .*60 and k up to 16; asked for seed"):
        bundled_splits("sst2", k, seed, TASKS["sst2"].label_names)


def test_a_task_that_is_not_bundled_says_which_are():
    assert bundled_tasks() == list(BUNDLED)
    with pytest.raises(DataError, match=r"no rows of 'mrpc' ship with bbt \(bundled: agnews, sst2\)"):
        bundled_test("mrpc")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the full data sets are not at {SHARED}")
@pytest.mark.parametrize(("task", "test_file"), [("sst2", "validation.jsonl"), ("agnews", "test.jsonl")])
def test_bundled_rows_are_those_of_the_full_data(task, test_file):
    names = TASKS[task].label_names
    labels = [str(i) for i in range(len(names))]
    train = read_examples(SHARED / task / "train.jsonl", Columns(), labels)
    assert bundled_test(task) == read_examples(SHARED / task / test_file, Columns(), labels)
    for seed, k in ((0, 16), (42, 16), (13, 8)):
        split = bundled_splits(task, k, seed, names)
        assert (split.train, split.dev) == reference_k_shot(train, k, seed, len(names))


OWN = Task("own", Template("{prompt} {text} ? {mask} {text_pair}"), ("no", "yes"), ("no", "yes"))


def own_files(folder, columns=("text", "label", "text_pair")):
    rows = [Example(f"a {i}", i % 2, f"b {i}") for i in range(24)]
    train = str(written(folder / "train.jsonl", rows[12:], columns))
    return {"source": "files", "k": 3, "train": train, "test": str(written(folder / "test.jsonl", rows[:12], columns))}


def test_own_files_with_other_column_and_label_names(tmp_path):
    config = own_files(tmp_path, ("first", "gold", "second"))
    columns = {"text": "first", "text_pair": "second", "label": "gold"}
    split = make_split(DataConfig(**config, columns=columns, labels=("1", "0"), seed=4), OWN, seed=0)
    assert [(e.text, e.label, e.text_pair) for e in split.test[:2]] == [("a 0", 1, "b 0"), ("a 1", 0, "b 1")]
    assert split.train == make_split(DataConfig(**config, columns=columns, labels=("1", "0")), OWN, seed=4).train


def test_a_pair_task_never_loses_its_second_text_silently(tmp_path):
    config = own_files(tmp_path, ("first", "label", "second"))
    with pytest.raises(DataError, match="no column 'text_pair'"):
        make_split(DataConfig(**config, columns={"text": "first"}), OWN, seed=0)


def test_label_values_and_label_names_must_match_in_number(tmp_path):
    with pytest.raises(ConfigError, match=r"data.labels has 3 values .* for 2 labels"):
        make_split(DataConfig(**own_files(tmp_path), labels=("0", "1", "2")), OWN, seed=0)


def test_numbers_are_label_values(tmp_path):
    config = own_files(tmp_path) | {"labels": [1, 0.0]}
    data = make_config({"data": config}).data
    assert data.labels == ("1", "0.0")
    assert [e.label for e in make_split(data, OWN, seed=0).test[:2]] == [1, 0]
    again = DataConfig.model_validate(data.model_dump(mode="json"))
    assert again == data


@pytest.mark.parametrize("labels", [("1", "1"), ("1", "1.0")])
def test_a_label_value_that_stands_twice_is_an_error(tmp_path, labels):
    with pytest.raises(ConfigError, match=r"data\.labels repeats a value"):
        make_split(DataConfig(**own_files(tmp_path), labels=labels), OWN, seed=0)


def test_files_must_be_named():
    with pytest.raises(ConfigError, match=r"needs data\.train and data\.test"):
        make_split(DataConfig(source="files", train="x.csv"), OWN, seed=0)


def test_folds_share_the_labelled_rows_out_class_by_class():
    task = builtin_task("sst2", "masked")
    whole = make_split(DataConfig(k=4), task, seed=0)
    folds = [make_split(DataConfig(k=4, folds=4, fold=fold), task, seed=0) for fold in range(4)]
    pool = sorted(example.text for example in [*whole.train, *whole.dev])
    assert sorted(example.text for fold in folds for example in fold.dev) == pool
    for fold in folds:
        assert sorted(example.text for example in [*fold.train, *fold.dev]) == pool
        assert [sum(e.label == label for e in fold.dev) for label in (0, 1)] == [2, 2]
        assert fold.test == whole.test


@pytest.mark.parametrize(("folds", "fold"), [(4, 4), (9, 0)])
def test_a_fold_that_is_not_there_is_an_error(folds, fold):
    with pytest.raises(ConfigError, match=f"data.fold is {fold} of data.folds {folds}: .*8 rows to share out"):
        make_split(DataConfig(k=4, folds=folds, fold=fold), builtin_task("sst2", "masked"), seed=0)
