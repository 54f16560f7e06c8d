"""Metrics of generated text, some of them from libraries. Each takes B texts and, for each of them, one or several
references, and gives a number in [0, 1]."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, TypeAlias, cast

from bbt.errors import ConfigError
from bbt.names import Table, resolved

References: TypeAlias = Sequence[Sequence[str]]
"""The references of each text (B of them), one text at least."""

SequenceMetric: TypeAlias = Callable[[Sequence[str], References], float]
"""A metric: texts (B,) and their references -> a number in [0, 1]."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(texts: Sequence[str], references: References) -> float:
    """Compute the share of texts that equal one of their references, both normalised as in SQuAD's official script
    (`normalised`)."""
    return fmean(
        max(float(normalised(text) == normalised(one)) for one in ones)
        for text, ones in zip(texts, references, strict=True)
    )


def token_f1(texts: Sequence[str], references: References) -> float:
    """Compute the mean F1 of words, each text's with the reference that suits it best, as SQuAD's official script
    (v1.1) does."""
    return fmean(
        max(_f1(normalised(text).split(), normalised(one).split()) for one in ones)
        for text, ones in zip(texts, references, strict=True)
    )


def bleu(texts: Sequence[str], references: References) -> float:
    """Compute sacreBLEU's BLEU of all texts together, divided by 100."""
    return float(_sacrebleu("bleu").corpus_score(list(texts), _streams(references)).score) / 100


def chrf(texts: Sequence[str], references: References) -> float:
    """Compute sacreBLEU's chrF2 of all texts together, divided by 100."""
    return float(_sacrebleu("chrf").corpus_score(list(texts), _streams(references)).score) / 100


def rouge1(texts: Sequence[str], references: References) -> float:
    """Compute the mean F of single words with rouge-score's stemming, each text's with the reference that suits it
    best."""
    return _rouge("rouge1", texts, references)


def rouge2(texts: Sequence[str], references: References) -> float:
    """Compute what `rouge1` does, of pairs of words."""
    return _rouge("rouge2", texts, references)


def rouge_l(texts: Sequence[str], references: References) -> float:
    """Compute what `rouge1` does, of the longest common subsequence."""
    return _rouge("rougeL", texts, references)


SEQUENCE_METRICS: Table = {
    "exact_match": ("bbt.tasks.sequence_metrics:exact_match", "share of generated texts that are right (SQuAD)"),
    "token_f1": ("bbt.tasks.sequence_metrics:token_f1", "F1 of a generated text's words (SQuAD)"),
    "bleu": ("bbt.tasks.sequence_metrics:bleu", "sacreBLEU's BLEU of generated text, over 100"),
    "chrf": ("bbt.tasks.sequence_metrics:chrf", "sacreBLEU's chrF2 of generated text, over 100"),
    "rouge1": ("bbt.tasks.sequence_metrics:rouge1", "ROUGE-1 of generated text"),
    "rouge2": ("bbt.tasks.sequence_metrics:rouge2", "ROUGE-2 of generated text"),
    "rougeL": ("bbt.tasks.sequence_metrics:rouge_l", "ROUGE-L of generated text"),
}


def load_sequence_metric(name: str) -> SequenceMetric:
    """Load a metric of generated text by name or `module:function`.

    Raises:
        ConfigError: no such metric.
    """
    return cast(SequenceMetric, resolved("metric", name, SEQUENCE_METRICS))


def signatures(names: Sequence[str], references: References) -> dict[str, str]:
    """Collect sacreBLEU's signatures of its metrics among these, of texts with these references, whose number a row is
    in it; figures of equal signatures can be compared."""
    found = {}
    for name in names:
        if name in ("bleu", "chrf") and references:
            metric = _sacrebleu(name)
            metric.corpus_score([""] * len(references), _streams(references))  # before it there is no number
            found[name] = str(metric.get_signature())
    return found


def normalised(text: str) -> str:
    """Put a text into lower case and drop punctuation, articles and further blanks, as SQuAD's official script does."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(words: list[str], reference: list[str]) -> float:
    same = sum((Counter(words) & Counter(reference)).values())
    return 2 * same / (len(words) + len(reference)) if same else 0.0


def _streams(references: References) -> list[list[str | None]]:
    """Order references as sacreBLEU takes them: the first of each text, the second of each, and so on, with None where
    there is none."""
    longest = max(map(len, references))
    return [[ones[i] if i < len(ones) else None for ones in references] for i in range(longest)]


def _sacrebleu(name: str) -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise ConfigError(_missing(name, "sacrebleu")) from error
    return BLEU() if name == "bleu" else CHRF()


def _rouge(name: str, texts: Sequence[str], references: References) -> float:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ConfigError(_missing(name, "rouge-score")) from error
    scorer = RougeScorer([name], use_stemmer=True)
    return fmean(
        scorer.score_multi(list(ones), text)[name].fmeasure for text, ones in zip(texts, references, strict=True)
    )


def _missing(name: str, package: str) -> str:
    return f"the metric {name} needs the package {package}: pip install 'bbt-prompt[generation]'."
