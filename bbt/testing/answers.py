"""The contract of backends whose model answers in several tokens: `TargetBackend` and `GenerationBackend`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from bbt.backend import Backend, Decoding, EncodedPairs, GenerationBackend, Row, Segment, TargetBackend, require
from bbt.errors import BackendError
from bbt.testing.backends import N_TOKENS, TEXTS, close, equal, prompts_of, refused
from bbt.types import Prompts

TARGETS = ("bad", "bad film", "great", "not a good film , or worse ?")
"""Targets of the rows, of one token and of several; each of them stands after each text."""
DECODING = Decoding(max_new_tokens=6, stop=())
"""How text is generated."""


def check_answers(backend: Backend) -> None:
    """Check all of `TARGET_CHECKS` and `GENERATION_CHECKS` that the backend has the methods for.

    Raises:
        AssertionError: a clause of the contract is broken; says which.
    """
    if isinstance(backend, TargetBackend):
        for check in TARGET_CHECKS:
            check(backend)
    if isinstance(backend, GenerationBackend):
        for check in GENERATION_CHECKS:
            check(backend)


def targets_are_counted(backend: Backend) -> None:
    """`n_examples`, `n_truncated` and the tokens of each target are counted, with the one that ends what a decoder
    says."""
    encoded = _pairs(backend)
    equal("n_examples", encoded.n_examples, len(TEXTS) * len(TARGETS))
    equal("n_truncated of short rows", encoded.n_truncated, 0)
    counts = np.asarray(encoded.n_target_tokens).reshape(len(TEXTS), -1)
    equal("n_target_tokens of other rows", (counts == counts[0]).all(), True)
    least, found = 1 + _says_the_end(backend), counts[0].tolist()
    assert least == found[0] < found[1] < found[3], f"n_target_tokens of {TARGETS} are {found}."
    assert encoded.n_tokens > counts.sum(), "n_tokens must count the contexts' tokens and the targets'."


def log_likelihoods_have_the_shape_asked_for(backend: Backend) -> None:
    """Log-likelihoods are (n, B), float32, finite, and those of probabilities."""
    found = _found(backend, prompts_of(backend, 3))
    equal("the log-likelihoods' shape", found.shape, (3, len(TEXTS) * len(TARGETS)))
    equal("the log-likelihoods' type", found.dtype, np.dtype(np.float32))
    assert np.isfinite(found).all(), "log-likelihoods under finite prompts are not finite."
    assert found.max() <= 1e-4, f"a log-likelihood is {found.max()}: expected none above 0."


def log_likelihoods_depend_on_all_that_they_are_of(backend: Backend) -> None:
    """Candidate, context and target each make a difference."""
    found = _found(backend, prompts_of(backend, 3)).reshape(3, len(TEXTS), len(TARGETS))
    for axis, what in enumerate(("candidate", "context", "target")):
        assert found.std(axis).max() > 1e-4, f"the log-likelihoods do not depend on the {what}."


def a_target_is_no_likelier_than_its_beginning(backend: Backend) -> None:
    """The log-likelihood is a sum over a target's tokens: "bad film" has "bad" and more. What a decoder says has its
    end too, so that no answer is another's beginning: all of them together have a probability of 1 at most."""
    found = _found(backend, prompts_of(backend, 3)).reshape(3, len(TEXTS), len(TARGETS))
    if _says_the_end(backend):
        total = np.exp(found.astype(np.float64)).sum(-1).max()
        assert total <= 1 + 1e-4, f"different answers to one text have probabilities of {total:.3g} in all."
        return
    assert (found[..., 1] < found[..., 0]).all(), f"{TARGETS[1]!r} is likelier than {TARGETS[0]!r}, its beginning."


def one_token_is_as_likely_as_its_label_score_says(backend: Backend) -> None:
    """Targets of one token differ as their label scores do. An encoder-decoder's have their end beside that token."""
    if _says_the_end(backend):
        return
    words = [TARGETS[0], TARGETS[2]]
    encoded = backend.encode([(*row[:-1], Segment("mask")) for row in _rows()[:: len(TARGETS)]], words)
    scores = backend.label_scores(prompts_of(backend, 3), encoded)
    found = _found(backend, prompts_of(backend, 3)).reshape(3, len(TEXTS), len(TARGETS))
    close(
        "what label scores and log-likelihoods say of two words",
        scores[..., 0] - scores[..., 1],
        found[..., 0] - found[..., 2],
    )


def candidates_score_targets_alone_as_together(backend: Backend) -> None:
    """A candidate scores alone as it does in a population, and again as the first time, bit for bit."""
    population = prompts_of(backend, 3)
    together = _found(backend, population)
    close(
        "log-likelihoods alone and in a population",
        np.concatenate([_found(backend, p[None]) for p in population]),
        together,
    )
    assert np.array_equal(together, _found(backend, population)), "the same call gives other log-likelihoods again."


def rows_without_prompts_have_likely_targets_too(backend: Backend) -> None:
    """Rows without prompt tokens, T = 0, are scored under the manual prompt."""
    encoded = _pairs(backend, 0)
    found = require(backend, TargetBackend).target_log_likelihoods(prompts_of(backend, 1)[:, :0], encoded)
    equal("the shape under the manual prompt", found.shape, (1, len(TEXTS) * len(TARGETS)))


def pairs_that_cannot_be_scored_are_refused(backend: Backend) -> None:
    """No rows, rows that do not end in a target, and prompts of another shape are a BackendError."""
    able = require(backend, TargetBackend)
    refused(partial(able.encode_pairs, []), BackendError, "no rows at all")
    refused(partial(able.encode_pairs, [row[:-1] for row in _rows()]), BackendError, "rows without a target")
    _refuses_other_shapes(backend, able.target_log_likelihoods, _pairs(backend))


TARGET_CHECKS: tuple[Callable[[Backend], None], ...] = (
    targets_are_counted,
    log_likelihoods_have_the_shape_asked_for,
    log_likelihoods_depend_on_all_that_they_are_of,
    a_target_is_no_likelier_than_its_beginning,
    one_token_is_as_likely_as_its_label_score_says,
    candidates_score_targets_alone_as_together,
    rows_without_prompts_have_likely_targets_too,
    pairs_that_cannot_be_scored_are_refused,
)
"""The clauses for a `TargetBackend`, each a function of the backend."""


def a_text_is_written_for_each_row(backend: Backend) -> None:
    """Each row has a text, the same at every call and whatever stands beside it."""
    rows, (prompt, other, _) = _rows()[:: len(TARGETS)], prompts_of(backend, 3)
    texts = _written(backend, rows, prompt)
    equal("the number of texts", len(texts), len(rows))
    equal("the texts of the same call", _written(backend, rows, prompt), texts)
    equal("the texts of each row alone", [_written(backend, [row], prompt)[0] for row in rows], texts)
    assert len({*texts, *_written(backend, rows, other)}) > 1, "the texts do not depend on row or prompt."


def a_text_ends_before_a_stop_string(backend: Backend) -> None:
    """Nothing of the stop string, or of what comes after it, is in the text."""
    rows, (prompt,) = _rows()[:1], prompts_of(backend, 1)
    (whole,) = _written(backend, rows, prompt)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    (cut,) = _written(backend, rows, prompt, Decoding(DECODING.max_new_tokens, stop=(stop,)))
    equal(f"the text of {whole!r} before {stop!r}", cut, whole.split(stop)[0].strip())


def a_draw_depends_on_its_seed(backend: Backend) -> None:
    """A sampled text is the same with the same seed, and not with all others."""
    rows, (prompt,) = _rows()[:1], prompts_of(backend, 1)
    how = [Decoding(DECODING.max_new_tokens, stop=(), sample=True, temperature=2.0, seed=seed) for seed in range(4)]
    texts = [_written(backend, rows, prompt, one) for one in how]
    equal("a text that is drawn again", _written(backend, rows, prompt, how[1]), texts[1])
    assert len({*map(tuple, texts)}) > 1, "texts that are drawn do not depend on the seed."


def contexts_that_cannot_be_written_on_are_refused(backend: Backend) -> None:
    """No rows, prompts of another shape, several prompts, and more new tokens than there is room for are a
    BackendError."""
    able, most = require(backend, GenerationBackend), DECODING.max_new_tokens
    refused(partial(able.encode_contexts, [], most), BackendError, "no rows at all")
    encoded = able.encode_contexts(_rows(), most)
    _refuses_other_shapes(backend, partial(able.generate, decoding=DECODING), encoded)
    refused(lambda: able.generate(prompts_of(backend, 2), encoded, DECODING), BackendError, "two prompts")
    longer = Decoding(most + 1)
    refused(lambda: able.generate(prompts_of(backend, 1), encoded, longer), BackendError, f"{most + 1} new tokens")


GENERATION_CHECKS: tuple[Callable[[Backend], None], ...] = (
    a_text_is_written_for_each_row,
    a_text_ends_before_a_stop_string,
    a_draw_depends_on_its_seed,
    contexts_that_cannot_be_written_on_are_refused,
)
"""The clauses for a `GenerationBackend`, each a function of the backend."""


def _rows(n_tokens: int = N_TOKENS) -> list[Row]:
    """Each text with each target, those of a text next to each other."""
    return [
        (
            Segment("prompt", n_tokens=n_tokens),
            Segment("literal", " . "),
            Segment("text", text),
            Segment("literal", " . It was "),
            Segment("target", target),
        )
        for text in TEXTS
        for target in TARGETS
    ]


def _says_the_end(backend: Backend) -> bool:
    """Whether the token that ends a target is scored and counted as one of its own."""
    return backend.info.kind == "encoder-decoder"


def _pairs(backend: Backend, n_tokens: int = N_TOKENS) -> EncodedPairs:
    return require(backend, TargetBackend).encode_pairs(_rows(n_tokens))


def _found(backend: Backend, prompts: Prompts) -> Any:
    return require(backend, TargetBackend).target_log_likelihoods(prompts, _pairs(backend))


def _written(backend: Backend, rows: Sequence[Row], prompt: Prompts, decoding: Decoding = DECODING) -> list[str]:
    able = require(backend, GenerationBackend)
    return able.generate(prompt[None], able.encode_contexts(rows, decoding.max_new_tokens), decoding)


def _refuses_other_shapes(backend: Backend, call: Callable[[Prompts, Any], object], encoded: Any) -> None:
    hidden = backend.info.hidden_size
    for shape in ((1, N_TOKENS + 1, hidden), (1, N_TOKENS, hidden + 1), (N_TOKENS, hidden)):
        message = refused(partial(call, np.zeros(shape, np.float32), encoded), BackendError, f"shape {shape}")
        assert f"expected (n, {N_TOKENS}, {hidden})" in message, f"the refusal of {shape} names no shape: {message}"
