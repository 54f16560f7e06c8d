"""Make the rows that ship with bbt from full data sets: for each seed the first 32 rows a class of the shuffled
training split (16-shot train and dev), and the whole test set.

    python examples/bundle_data.py sst2 TRAIN.jsonl TEST.jsonl bbt/tasks/bundled/sst2
"""

import argparse
import json
from pathlib import Path

from bbt.tasks.builtin import task_spec
from bbt.tasks.data import MAX_BUNDLED_K, k_shot
from bbt.tasks.examples import Columns, Example, read_examples

SEEDS = (*range(10), 13, 42, 50, 60)


def record(example: Example, **more: int) -> str:
    return json.dumps({**more, "text": example.text, "label": example.label}, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    for name in ("train", "test", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    names = task_spec(args.task).label_names
    labels = [str(i) for i in range(len(names))]
    train = read_examples(args.train, Columns(), labels)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "few_shot.jsonl").open("w", encoding="utf-8") as handle:
        for seed in SEEDS:
            shots = k_shot(train, MAX_BUNDLED_K, seed, names)
            handle.writelines(record(example, seed=seed) for part in shots for example in part)
    with (args.out / "test.jsonl").open("w", encoding="utf-8") as handle:
        handle.writelines(record(example) for example in read_examples(args.test, Columns(), labels))


if __name__ == "__main__":
    main()
