"""A text-only API's answers are read here for what they say of label words."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers.decoders import ByteLevel

from backends.openai.answers import TopTokens
from bbt.errors import LabelWordError

_BYTES = ByteLevel()


def label_log_probs(tokens: TopTokens, words: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Compute the log-probabilities (K,) of label words from the most likely next tokens, and which words are among
    them (K,).

    Tokens that are the word but for its case and the spaces around it count together, whether they are told as text
    or as the vocabulary's pieces. A word that is not listed gets the least likely listed token's log-probability, than
    which it is not likelier.
    """
    known: dict[str, float] = {}
    for token, value in tokens:
        for text in _texts(token):
            known[text] = np.logaddexp(known.get(text, -np.inf), value)
    floor = min(value for _, value in tokens)
    keys = [_key(word) for word in words]
    scores = np.array([max(floor, known.get(key, floor)) for key in keys], dtype=np.float32)
    return scores, np.array([key in known for key in keys])


def votes(answers: Sequence[str], words: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Compute the log (K,) of the smoothed share of answers whose first label word is this one,
    log((votes + 1) / (n + K)), and which words were named (K,).

    With one answer the cross-entropy of these is a linear function of the accuracy. Where all are equal, each label was
    named as often as the others, or none was named.
    """
    pattern = re.compile(r"\b(" + "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True)) + r")\b", re.I)
    named = [found.group().casefold() for answer in answers if (found := pattern.search(answer))]
    counts = np.array([named.count(word.casefold()) for word in words])
    return np.log((counts + 1) / (len(answers) + len(words))).astype(np.float32), counts > 0


def check_distinct(words: Iterable[str]) -> None:
    """Check that label words differ in more than their case and the spaces around them, which tell nothing apart in
    texts.

    Raises:
        LabelWordError: two label words differ in nothing else.
    """
    seen: dict[str, str] = {}
    for word in words:
        twin = seen.setdefault(_key(word), word)
        if twin is not word:
            raise LabelWordError(
                f"label words {twin!r} and {word!r} differ in case or spaces alone, which an answer of text does not "
                "tell apart. Choose others (task.label_words).",
                [word],
            )


def _texts(token: str) -> set[str]:
    """List what a token may say: some servers tell text, others a vocabulary's pieces, which have "\u0120" (byte-level
    BPE) or "\u2581" (SentencePiece) for a space."""
    return {_key(token), _key(token.replace("\u2581", " ")), _key(_BYTES.decode([token]))}


def _key(text: str) -> str:
    return text.strip().casefold()
