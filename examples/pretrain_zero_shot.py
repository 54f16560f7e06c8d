"""Zero-shot accuracy of a masked or causal LM on a labelled jsonl file, with label words given or chosen.

    python examples/pretrain_zero_shot.py MODEL DATA/sst2/validation.jsonl "{text} . It was {mask} ." bad,great
    python examples/pretrain_zero_shot.py MODEL DATA/sst2/validation.jsonl "{text} . It was {mask} ." \
        bad/terrible/awful,great/good --choose-on DATA/sst2/train.jsonl --fit-on DATA/sst2/train.jsonl

Label words are separated by commas, in label order; candidates for one label by slashes.  Where there are
candidates, the combination most accurate on rows of ``--choose-on`` is taken: never choose on the rows you report.
A causal LM is asked for the token after the template up to ``{mask}``.  With ``--fit-on`` the accuracy with class
biases stands beside it, fitted on 16 of those rows a class, for each of three draws.
"""

import argparse
import json
import random
from itertools import product
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from bbt.scoring.calibration import fitted_biases


def read_rows(path: Path, limit: int | None) -> tuple[list[str], torch.Tensor]:
    """Texts and labels (N,); where there are more than ``limit`` rows, a fixed random sample of them."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if limit and limit < len(rows):
        rows = random.Random(0).sample(rows, limit)
    return [r["text"] for r in rows], torch.tensor([r["label"] for r in rows])


class Scorer:
    """Log-probabilities of label words at the slot of a template, for either kind of model."""

    def __init__(self, folder: Path, precision: str = "float32", max_words: int = 200):
        self.max_words = max_words
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.causal = self.tokenizer.mask_token is None
        auto = AutoModelForCausalLM if self.causal else AutoModelForMaskedLM
        self.model = auto.from_pretrained(folder, dtype=getattr(torch, precision)).eval()

    def prompt(self, text: str, template: str) -> str:
        """Fill the template; very long texts lose their end, never the template."""
        filled = template.replace("{text}", " ".join(text.split()[: self.max_words]))
        if self.causal:
            return filled.split("{mask}")[0].rstrip()
        return filled.replace("{mask}", self.tokenizer.mask_token)

    def word_id(self, word: str) -> int:
        """The one token that spells the word."""
        ids = self.tokenizer(" " + word, add_special_tokens=False).input_ids
        assert len(ids) == 1, f"{word!r} is {len(ids)} tokens"
        return ids[0]

    @torch.inference_mode()
    def scores(self, texts: list[str], template: str, words: list[str], batch: int = 32) -> torch.Tensor:
        """Log-probability (N, words) of each word at the slot; texts of like length share a batch."""
        ids = [self.word_id(w) for w in words]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        result = torch.empty(len(texts), len(words))
        for i in range(0, len(order), batch):
            part = order[i : i + batch]
            result[part] = self.slot([self.prompt(texts[j], template) for j in part])[:, ids]
        return result

    def slot(self, prompts: list[str]) -> torch.Tensor:
        """Log-probabilities (B, vocab) at the mask, or after the last token of a causal LM's prompt."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="right")
        inputs.pop("token_type_ids", None)
        if self.causal:
            place = inputs.attention_mask.sum(1) - 1
        else:
            place = (inputs.input_ids == self.tokenizer.mask_token_id).int().argmax(1)
        hidden = self.model.base_model(**inputs)[0][torch.arange(len(prompts)), place]  # (B, width)
        head = self.model.get_output_embeddings() if self.causal else self.model.cls  # nowhere but at the slot
        return head(hidden).float().log_softmax(-1)


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows whose label's word scores highest."""
    return float((scores.argmax(1) == labels).float().mean())


def shots(labels: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """Places of k rows of each class, drawn by the seed; of all rows of a class that has fewer."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == label][:k] for label in labels.unique()])


def calibrated_accuracy(
    scores: torch.Tensor, labels: torch.Tensor, fit_scores: torch.Tensor, fit_labels: torch.Tensor
) -> float:
    """Accuracy with class biases that are fitted on other rows."""
    biases = fitted_biases(fit_scores[None].numpy(), fit_labels.numpy())[0]
    return accuracy(scores + torch.from_numpy(biases), labels)


def choose(scores: torch.Tensor, labels: torch.Tensor, words: list[str], options: list[list[str]]) -> list[tuple]:
    """Every combination of candidates with its accuracy, best first."""
    column = {w: i for i, w in enumerate(words)}
    combos = [c for c in product(*options) if len(set(c)) == len(c)]
    return sorted(((accuracy(scores[:, [column[w] for w in c]], labels), c) for c in combos), reverse=True)


def main() -> None:
    """Choose the label words where asked, then print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("template")
    parser.add_argument("words")
    parser.add_argument("--choose-on", type=Path)
    parser.add_argument("--limit", type=int, help="use a random sample of the rows of DATA")
    parser.add_argument("--choose-limit", type=int, default=1000, help="likewise for the rows chosen on")
    parser.add_argument("--fit-on", type=Path, help="file of training rows for class biases")
    parser.add_argument("--k", type=int, default=16, help="rows a class that they are fitted on")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    scorer, options = Scorer(args.model, args.precision), [w.split("/") for w in args.words.split(",")]
    best = tuple(o[0] for o in options)
    if args.choose_on:
        words = list(dict.fromkeys(w for o in options for w in o))
        texts, labels = read_rows(args.choose_on, args.choose_limit)
        ranking = choose(scorer.scores(texts, args.template, words), labels, words, options)
        best = ranking[0][1]
        print(f"chosen on {len(texts)} rows of {args.choose_on.name}:", [(round(a, 4), *c) for a, c in ranking[:5]])
    texts, labels = read_rows(args.data, args.limit)
    scores = scorer.scores(texts, args.template, list(best))
    result = accuracy(scores, labels)
    print(f"{args.data.name} {len(texts)} rows, {args.template!r}, {','.join(best)}: {100 * result:.2f} %")
    if args.fit_on:
        fit_texts, fit_labels = read_rows(args.fit_on, None)
        found = []
        for seed in range(3):
            places = shots(fit_labels, args.k, seed)
            fit_scores = scorer.scores([fit_texts[i] for i in places], args.template, list(best))
            found.append(100 * calibrated_accuracy(scores, labels, fit_scores, fit_labels[places]))
        each = ", ".join(f"{a:.2f}" for a in found)
        print(f"with biases fitted on {args.k} rows a class: {np.mean(found):.2f} % ({each})")


if __name__ == "__main__":
    main()
