"""The rows of a task: how the few that train are drawn, and those that ship with the package.

Few-shot protocol (BBT section 4.1, released code): shuffle the original training split with the seed; per class
the first k examples are train, the next k dev.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bbt.draws import stable_uniform
from bbt.errors import DataError
from bbt.tasks.examples import Example
from bbt.tasks.records import read_records

MAX_BUNDLED_K = 16

Shots = int | Literal["all"]

_BUNDLE = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class Split:
    """k-shot train and dev rows, and the test rows."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]


def draw_split(
    train: Sequence[Example],
    dev: Sequence[Example] | None,
    test: Sequence[Example],
    k: Shots,
    seed: int,
    label_names: Sequence[str],
) -> Split:
    """k rows a class of `train`, or all of them. Dev are the next k, or all rows of `dev` where the user has some.

    Warns where a row stands in more than one part, by its texts.

    Raises:
        DataError: a class has too few rows, or nothing is left for dev.
    """
    if dev is not None:
        split = Split(k_of_each(train, k, seed, label_names), list(dev), list(test))
    elif k == "all":
        raise DataError("k: all leaves no row for dev: name your own under data.dev, or give k as a number.")
    else:
        split = Split(*k_shot(train, k, seed, label_names), list(test))
    _warn_of_repeats(split)
    return split


def share_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Train and dev rows, both in their order: of each class's rows, shuffled by the seed, the last `share` are dev,
    rounded to the next whole row, but one stays for train.

    Raises:
        DataError: a share that is none, or no class has a row to spare.
    """
    if not 0 < share < 1:
        raise DataError(f"dev as a share of the train rows must lie between 0 and 1, got {share}.")
    of_class = Counter(example.label for example in examples)
    for_dev = {label: min(n - 1, max(1, round(share * n))) for label, n in of_class.items()}
    dev: set[int] = set()
    for i in reversed(_shuffled_order(len(examples), seed)):
        if for_dev[examples[i].label]:
            for_dev[examples[i].label] -= 1
            dev.add(i)
    if not dev:
        raise DataError("no row can be spared for dev: give at least two rows of a class, or dev rows of your own.")
    return [e for i, e in enumerate(examples) if i not in dev], [e for i, e in enumerate(examples) if i in dev]


def k_shot(
    examples: Sequence[Example], k: int, seed: int, label_names: Sequence[str]
) -> tuple[list[Example], list[Example]]:
    """Train and dev rows by the reference's rule."""
    return first_k_then_k(_shuffled(examples, seed), k, label_names)


def k_of_each(examples: Sequence[Example], k: Shots, seed: int, label_names: Sequence[str]) -> list[Example]:
    """Train rows alone: k a class by the same rule, or all in their order.

    Raises:
        DataError: a class has fewer than k rows, or none.
    """
    if k == "all":
        _check_enough(Counter(e.label for e in examples), 1, label_names, "k: all needs 1")
        return list(examples)
    seen: Counter[int] = Counter()
    chosen = []
    for example in _shuffled(examples, seed):
        seen[example.label] += 1
        if seen[example.label] <= k:
            chosen.append(example)
    _check_enough(seen, k, label_names, f"{k}-shot needs {k}")
    return chosen


def first_k_then_k(
    examples: Iterable[Example], k: int, label_names: Sequence[str]
) -> tuple[list[Example], list[Example]]:
    """Per class the first k rows are train, the next k dev.

    Raises:
        DataError: a class has fewer than 2 k rows.
    """
    seen: Counter[int] = Counter()
    train, dev = [], []
    for example in examples:
        seen[example.label] += 1
        if seen[example.label] <= k:
            train.append(example)
        elif seen[example.label] <= 2 * k:
            dev.append(example)
    _check_enough(seen, 2 * k, label_names, f"{k}-shot needs {2 * k} ({k} train and {k} dev)")
    return train, dev


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    return [examples[i] for i in _shuffled_order(len(examples), seed)]


def _shuffled_order(n: int, seed: int) -> list[int]:
    """The reference's order; NumPy's legacy shuffle is frozen across versions."""
    order: list[int] = np.arange(n).tolist()
    np.random.RandomState(seed).shuffle(order)
    return order


def _check_enough(seen: Counter[int], needed: int, label_names: Sequence[str], need: str) -> None:
    for label, name in enumerate(label_names):
        if seen[label] < needed:
            raise DataError(f"class {name!r} has {seen[label]} examples, {need}. Lower k or give more data.")


def _warn_of_repeats(split: Split) -> None:
    """One warning with counts where rows of one part stand in another: what was tuned on is no test."""
    parts = {"train": split.train, "dev": split.dev, "test": split.test}
    texts = {name: {(e.text, e.text_pair) for e in rows} for name, rows in parts.items()}
    pairs = (("train", "dev"), ("train", "test"), ("dev", "test"))
    counts = {pair: sum((e.text, e.text_pair) in texts[pair[0]] for e in parts[pair[1]]) for pair in pairs}
    said = [f"{n} of {len(parts[late])} {late} rows stand in {early}" for (early, late), n in counts.items() if n]
    if said:
        warnings.warn(f"the parts of the data overlap: {', '.join(said)}; scores on them flatter.", stacklevel=2)


def bundled_tasks() -> list[str]:
    """Names of the tasks whose few-shot rows and test set ship with the package."""
    return sorted(folder.name for folder in _BUNDLE.iterdir() if (folder / "few_shot.jsonl").is_file())


def bundled_splits(task: str, k: Shots, seed: int, label_names: Sequence[str]) -> Split:
    """The shipped rows of a task: for each shipped seed the first 32 rows a class, in the reference's order.

    Raises:
        DataError: the task, the seed or a k above 16 is not shipped.
    """
    few_shot = _bundled_records(task, "few_shot.jsonl")
    seeds = sorted({record["seed"] for record in few_shot})
    if seed not in seeds or k == "all" or k > MAX_BUNDLED_K:
        raise DataError(
            f"bundled {task} holds seeds {', '.join(map(str, seeds))} and k up to {MAX_BUNDLED_K}; asked for seed "
            f"{seed}, k {k}. Point data.train and data.test at the full data for others."
        )
    chosen = [Example(r["text"], r["label"]) for r in few_shot if r["seed"] == seed]
    return Split(*first_k_then_k(chosen, k, label_names), test=bundled_test(task))


def bundled_test(task: str) -> list[Example]:
    """The shipped test rows of a task."""
    return [Example(r["text"], r["label"]) for r in _bundled_records(task, "test.jsonl")]


def _bundled_records(task: str, name: str) -> list[dict[str, Any]]:
    if task not in bundled_tasks():
        raise DataError(
            f"no rows of {task!r} ship with bbt (bundled: {', '.join(bundled_tasks())}). Point data.train and "
            "data.test at your files (data.source: files), or set data.source: huggingface."
        )
    return [record for _, record in read_records(_BUNDLE / task / name) if record is not None]


def alternating(examples: Sequence[Example], seed: int) -> list[Example]:
    """Return examples in a random order in which the classes take turns, so that its beginning is balanced too."""
    shuffled = [examples[i] for i in stable_uniform(seed, len(examples)).argsort(kind="stable")]
    seen: Counter[int] = Counter()
    turns = []
    for example in shuffled:
        turns.append((seen[example.label], example))
        seen[example.label] += 1
    return [example for _, example in sorted(turns, key=lambda turn: turn[0])]
