import json
from pathlib import Path

import numpy as np
import pytest

from bbt.errors import ConfigError, DataError
from bbt.settings import DataConfig
from bbt.tasks import TASKS, Columns, Example, Task, Template, load_splits
from bbt.tasks.builtin import builtin_task
from bbt.tasks.configured import make_split
from bbt.tasks.data import (
    bundled_splits,
    bundled_tasks,
    bundled_test,
    huggingface_splits,
    k_shot,
    read_examples,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"
BUNDLED = ("agnews", "sst2")
ROWS = [Example("a film, good", 1), Example('say "no"', 0), Example("œuvre", 1)]
LABELS = ("0", "1")


def written(folder, suffix, columns=("text", "label"), rows=ROWS):
    """The rows as a file of that kind."""
    import csv

    path = folder / f"data{suffix}"
    values = [(row.text, row.label, *((row.text_pair,) if len(columns) == 3 else ())) for row in rows]
    with path.open("w", encoding="utf-8", newline="") as handle:
        if suffix == ".jsonl":
            handle.writelines(json.dumps(dict(zip(columns, v, strict=True))) + "\n" for v in values)
        else:
            writer = csv.writer(handle, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([columns, *values])
    return path


def faulty(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    assert read_examples(written(tmp_path, suffix), Columns(), LABELS) == ROWS


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_columns_are_found_by_the_names_they_are_given(tmp_path, suffix):
    rows = [Example("one", 0, "two"), Example("three", 1, "four")]
    path = written(tmp_path, suffix, ("premise", "gold", "hypothesis"), rows)
    assert read_examples(path, Columns("premise", "hypothesis", "gold"), LABELS) == rows


def test_a_quote_in_a_tsv_is_text(tmp_path):
    path = faulty(tmp_path, "d.tsv", 'text\tlabel\n"so it\t1\nb\t0\n')
    assert [e.text for e in read_examples(path, Columns(), LABELS)] == ['"so it', "b"]


def test_label_values_are_indexed_in_the_order_given(tmp_path):
    path = faulty(tmp_path, "d.csv", "text,label\na,neg\nb,pos\n")
    assert [e.label for e in read_examples(path, Columns(), ("pos", "neg"))] == [1, 0]


@pytest.mark.parametrize(("name", "content"), [("d.csv", "text,label\na,1\n"), ("d.jsonl", '{"text":"a","label":1}')])
def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path, name, content):
    assert read_examples(faulty(tmp_path, name, "\ufeff" + content), Columns(), LABELS) == [Example("a", 1)]


def test_blank_lines_of_jsonl_are_skipped(tmp_path):
    path = faulty(tmp_path, "d.jsonl", '{"text": "a", "label": 0}\n\n  \n{"text": "b", "label": 1}')
    assert read_examples(path, Columns(), LABELS) == [Example("a", 0), Example("b", 1)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "sentence,label\na,1\n", r"d\.csv:2: no column 'text'. Columns here: sentence, label"),
        ("d.csv", "text,label\na,1\nb\n", r"d\.csv:3: no column 'label'"),
        ("d.tsv", "text\tlabel\na\t1\nb\t7\n", r"d\.tsv:3: unknown label '7'. Labels are: 0, 1"),
        ("d.csv", 'text,label\n"never closed,1\nb,1\n', r"d\.csv is not a table"),
        ("d.tsv", "text\tlabel\na\tb\t1\n", r"d\.tsv:2: more fields than the header has columns"),
        ("d.csv", 'text,label\n"two\nlines",1\nb,7\n', r"d\.csv:4: unknown label '7'"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', r"d\.jsonl:2: no column 'label'"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text": \n', r"d\.jsonl:2: not JSON"),
        ("d.jsonl", "[1, 2]\n", r"d\.jsonl:1: expected a JSON object, got list"),
        ("d.csv", "text,label\n", r"d\.csv holds no rows"),
        ("d.jsonl", "", r"d\.jsonl holds no rows"),
        ("d.parquet", "x", r"format '\.parquet' is not known. Give a \.jsonl, \.csv or \.tsv"),
        ("d.csv", b"text,label\n\xff\xfe,1\n", r"d\.csv is not UTF-8 text"),
        ("d.jsonl", b'{"text": "\xff", "label": 1}\n', r"d\.jsonl is not UTF-8 text"),
        ("d.csv", "text,label\n" + "a" * 200_000 + ",1\n", r"d\.csv is not a table: field larger than"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_examples(faulty(tmp_path, name, content), Columns(), LABELS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no data file .*gone\.csv"):
        read_examples(tmp_path / "gone.csv", Columns(), LABELS)


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


def test_files_are_split_as_k_shot_splits_them(tmp_path):
    train = written(tmp_path, ".jsonl", rows=many(60, 2))
    test = written(tmp_path, ".csv")
    split = load_splits(train, test, 3, 5, Columns(), ("a", "b"), LABELS)
    assert (split.train, split.dev) == k_shot(many(60, 2), 3, 5, "ab")
    assert split.test == ROWS


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


@pytest.mark.parametrize(("seed", "k"), [(11, 16), (0, 17)])
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
    rows = [Example(f"a {i}", i % 2, f"b {i}") for i in range(12)]
    path = str(written(folder, ".csv", columns, rows))
    return {"source": "files", "k": 3, "train": path, "test": path}


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


def test_trec_has_no_data_set_on_the_hub():
    with pytest.raises(ConfigError, match=r"trec has no data set on the hub .*data\.path"):
        make_split(DataConfig(source="huggingface"), builtin_task("trec", "masked"), seed=0)


def test_without_the_datasets_package_the_error_says_what_to_install():
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match="pip install datasets"):
            make_split(DataConfig(source="huggingface"), builtin_task("sst2", "masked"), 0)
    else:
        pytest.skip("datasets is installed")


def test_a_local_hugging_face_data_set_is_split_and_unlabelled_rows_are_left_out(tmp_path):
    pytest.importorskip("datasets")
    rows = [*many(80, 2), Example("unlabelled", -1)]
    for split in ("train", "test"):
        written(tmp_path, ".jsonl", rows=rows).rename(tmp_path / f"{split}.jsonl")
    split = huggingface_splits(str(tmp_path), None, ("train", "test"), 4, 3, Columns(), ("a", "b"), LABELS)
    assert (split.train, split.dev) == k_shot(rows[:-1], 4, 3, "ab")
    assert split.test == rows[:-1]
    with pytest.raises(DataError, match=r"cannot load .*\[dev\]"):
        huggingface_splits(str(tmp_path), None, ("dev", "test"), 4, 3, Columns(), ("a", "b"), LABELS)
