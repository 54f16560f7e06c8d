"""Choose a template and label words on training rows, each judged with the class biases that are fitted to it.

    python examples/choose_wording.py MODEL DATA/trec/train.jsonl \\
        description/meaning,entity/thing,abbreviation,human/person,location/place,number/date \\
        ". {mask} question: {text}" "{text} This asks for the {mask} ."

Label words are separated by commas, in label order; candidates for one label by slashes, the first of which are the
words to be beaten.  As many rows a class as ``--limit`` allows are cut into halves A and B.  Words are chosen on A,
one class after the other for two rounds, by accuracy under biases fitted on the other four of five folds.  B confirms
them: biases fitted on 16 rows a class of A, the mean over five draws.  B has chosen nothing: take the template that
is best on A, and believe what B says of it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pretrain_zero_shot import Scorer, accuracy, calibrated_accuracy, read_rows, shots


def halves(labels: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the rows of A and of B, equally many a class, at most ``limit`` together."""
    classes = labels.unique()
    size = min(limit // len(classes), int(torch.bincount(labels).min())) // 2
    drawn = shots(labels, 2 * size, seed=0).view(len(classes), 2, size)
    mixed = torch.randperm(len(classes) * size, generator=torch.Generator().manual_seed(1))  # no fold is one class
    return drawn[:, 0].flatten()[mixed], drawn[:, 1].flatten()[mixed]


def cross_fitted(scores: torch.Tensor, labels: torch.Tensor, folds: int = 5) -> float:
    """Accuracy of scores (N, K), each row's biases fitted on the other folds."""
    fold = torch.arange(len(labels)) % folds
    parts = [(fold == f, fold != f) for f in range(folds)]
    right = [calibrated_accuracy(scores[i], labels[i], scores[o], labels[o]) * int(i.sum()) for i, o in parts]
    return sum(right) / len(labels)


def chosen_words(
    scores: torch.Tensor, labels: torch.Tensor, options: Sequence[Sequence[str]], column: dict[str, int]
) -> list[str]:
    """The words that coordinate ascent finds from the first of each label's options; scores are (N, words)."""

    def value(words: list[str]) -> float:
        return cross_fitted(scores[:, [column[w] for w in words]], labels)

    best = [candidates[0] for candidates in options]
    reached = value(best)
    for label, candidates in [*enumerate(options)] * 2:
        for word in candidates:
            trial = [*best[:label], word, *best[label + 1 :]]
            if len(set(trial)) == len(trial) and (found := value(trial)) > reached:
                best, reached = trial, found
    return best


def main() -> None:
    """Print for each template how the first words and the chosen ones do on A and on B."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("words")
    parser.add_argument("templates", nargs="+")
    parser.add_argument("--limit", type=int, default=400, help="rows of A and B together")
    parser.add_argument("--max-words", type=int, default=200, help="longer texts lose their end")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    options = [label.split("/") for label in args.words.split(",")]
    column = {w: i for i, w in enumerate(dict.fromkeys(w for label in options for w in label))}
    texts, labels = read_rows(args.data, None)
    a, b = halves(labels, args.limit)
    scorer = Scorer(args.model, args.precision, args.max_words)
    print(f"{len(a)} rows to choose on (A), {len(b)} to confirm on (B)")
    for template in args.templates:
        on_a, on_b = (scorer.scores([texts[i] for i in part], template, list(column)) for part in (a, b))
        print(repr(template))
        for words in ([o[0] for o in options], chosen_words(on_a, labels[a], options, column)):
            picked = [column[w] for w in words]
            fits = [shots(labels[a], 16, seed) for seed in range(5)]
            confirmed = [
                calibrated_accuracy(on_b[:, picked], labels[b], on_a[f][:, picked], labels[a][f]) for f in fits
            ]
            plain, judged = accuracy(on_b[:, picked], labels[b]), cross_fitted(on_a[:, picked], labels[a])
            print(
                f"  {','.join(words)}: A {100 * judged:.1f} %, B {100 * np.mean(confirmed):.1f} %"
                f" (without biases {100 * plain:.1f} %)"
            )


if __name__ == "__main__":
    main()
