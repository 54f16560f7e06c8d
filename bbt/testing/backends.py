"""The contract of `bbt.backend.Backend` is checked here, through the protocol alone."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bbt.backend import Backend, Encoded, Row
from bbt.errors import BackendError, LabelWordError
from bbt.tasks.template import Template
from bbt.types import Prompts, Scores

TEMPLATE = Template("{prompt} . {text} . It was {mask}")
TEXTS = ("a film", "the plot is bad and the acting is worse , it was slow", "great", "I liked it")
N_TOKENS = 5
"""T of the prompts that are scored."""
TOLERANCE = 1e-5
"""By how much scores of one row may differ from one batch to another."""


def check_backend(backend: Backend, label_words: Sequence[str] = ("bad", "great")) -> None:
    """Check all of `BACKEND_CHECKS`.

    `label_words` (K,) are any words that the model has as one token each. A model that reads real words also passes
    `check_reads_prompts_as_words`.

    Raises:
        AssertionError: a clause of the contract is broken; says which.
    """
    for check in BACKEND_CHECKS:
        check(backend, label_words)


def info_tells_the_truth(backend: Backend, label_words: Sequence[str]) -> None:
    """`info` is of the word embeddings that `embed_ids` gives."""
    info = backend.info
    words = backend.embed_ids(range(info.vocab_size))
    equal("the shape of all word embeddings", words.shape, (1, info.vocab_size, info.hidden_size))
    spread = float(words.std())
    assert np.isclose(info.embedding_std, spread, rtol=1e-3), (
        f"info.embedding_std is {info.embedding_std}, but that of all word embeddings is {spread}."
    )
    kinds = ("masked", "causal", "encoder-decoder")
    assert info.kind in kinds, f"info.kind is {info.kind!r}, expected one of {', '.join(kinds)}."
    assert info.fingerprint, "info.fingerprint is empty: a prompt could be used on another model by accident."


def ordinary_ids_can_be_drawn(backend: Backend, label_words: Sequence[str]) -> None:
    """Every ordinary id has an embedding, stands once, and the special tokens are left out."""
    ids = backend.ordinary_ids()
    equal("the shape of ordinary tokens' embeddings", backend.embed_ids(ids).shape[:2], (1, len(ids)))
    assert len(set(ids)) == len(ids), "ordinary_ids holds an id twice."
    assert 0 < len(ids) < backend.info.vocab_size, "ordinary_ids holds none, or special tokens, too."


def encoded_rows_are_counted(backend: Backend, label_words: Sequence[str]) -> None:
    """`n_examples`, `n_tokens` and `n_truncated` count what they say."""
    encoded, empty = _encoded(backend, label_words), _encoded(backend, label_words, [""] * len(TEXTS))
    equal("n_examples", encoded.n_examples, len(TEXTS))
    equal("n_truncated of short rows", encoded.n_truncated, 0)
    assert encoded.n_tokens > empty.n_tokens > len(TEXTS) * N_TOKENS, (
        f"n_tokens is {encoded.n_tokens} with texts and {empty.n_tokens} without: it must count the texts' tokens, the "
        f"prompts' ({len(TEXTS) * N_TOKENS}) and the templates'."
    )


def scores_have_the_shape_asked_for(backend: Backend, label_words: Sequence[str]) -> None:
    """Scores are (n, B, K), float32 and finite."""
    scores = backend.label_scores(prompts_of(backend, 3), _encoded(backend, label_words))
    equal("the scores' shape", scores.shape, (3, len(TEXTS), len(label_words)))
    equal("the scores' type", scores.dtype, np.dtype(np.float32))
    assert np.isfinite(scores).all(), "scores of finite prompts are not finite."


def scores_depend_on_all_that_they_are_of(backend: Backend, label_words: Sequence[str]) -> None:
    """Candidate, row and label word each make a difference."""
    scores = backend.label_scores(prompts_of(backend, 3), _encoded(backend, label_words))
    centred = scores - scores.mean(axis=2, keepdims=True)  # scores are defined up to one constant a row
    for axis, what in enumerate(("candidate", "row", "label word")):
        assert centred.std(axis).max() > 1e-4, f"the scores do not depend on the {what}."


def candidates_are_independent(backend: Backend, label_words: Sequence[str]) -> None:
    """A candidate scores alone as it does in a population."""
    encoded = _encoded(backend, label_words)
    alone = np.concatenate([backend.label_scores(one[None], encoded) for one in prompts_of(backend, 3)])
    together = backend.label_scores(prompts_of(backend, 3), encoded)
    close("a candidate's scores alone and in a population", alone, together)


def the_same_call_gives_the_same_bits(backend: Backend, label_words: Sequence[str]) -> None:
    """Scoring is deterministic, and leaves the prompts as they are."""
    population, encoded = prompts_of(backend, 3), _encoded(backend, label_words)
    first = backend.label_scores(population, encoded)
    assert np.array_equal(population, prompts_of(backend, 3)), "label_scores has changed the prompts that it was given."
    second = backend.label_scores(population, encoded)
    assert np.array_equal(first, second), "the same call gives other scores the second time."


def any_memory_layout_will_do(backend: Backend, label_words: Sequence[str]) -> None:
    """Prompts may be read-only, in Fortran order and of float64."""
    population, encoded = prompts_of(backend, 3), _encoded(backend, label_words)
    frozen = np.asfortranarray(population.astype(np.float64))
    frozen.setflags(write=False)
    same = np.array_equal(
        backend.label_scores(frozen, encoded),  # type: ignore[arg-type]
        backend.label_scores(population, encoded),
    )
    assert same, "read-only float64 prompts in Fortran order score otherwise than the same numbers in C order."


def rows_without_a_prompt_take_empty_prompts(backend: Backend, label_words: Sequence[str]) -> None:
    """Rows without prompt tokens, T = 0, are scored under the manual prompt."""
    encoded = _encoded(backend, label_words, n_tokens=0)
    scores = backend.label_scores(prompts_of(backend, 1)[:, :0], encoded)
    equal("the shape of the manual prompt's scores", scores.shape, (1, len(TEXTS), len(label_words)))


def prompts_of_another_shape_are_refused(backend: Backend, label_words: Sequence[str]) -> None:
    """Another T or H, or no population axis, is a BackendError that says what was expected."""
    encoded, hidden = _encoded(backend, label_words), backend.info.hidden_size
    for shape in ((2, N_TOKENS + 1, hidden), (2, N_TOKENS - 1, hidden), (2, N_TOKENS, hidden + 1), (N_TOKENS, hidden)):
        wrong = np.zeros(shape, np.float32)
        message = refused(partial(backend.label_scores, wrong, encoded), BackendError, f"shape {shape}")
        assert f"expected (n, {N_TOKENS}, {hidden})" in message, f"the refusal of {shape} names no shape: {message}"


def no_rows_are_refused(backend: Backend, label_words: Sequence[str]) -> None:
    """A split without rows is a BackendError."""
    refused(lambda: backend.encode([], label_words), BackendError, "no rows at all")


def a_label_word_of_several_tokens_is_refused(backend: Backend, label_words: Sequence[str]) -> None:
    """A label word of several tokens is a LabelWordError that names the word; where it lists `words`, all of those."""
    word, other = " ".join(label_words), " ".join([*label_words, *label_words])
    message = refused(lambda: backend.encode(_rows(), [*label_words, word]), LabelWordError, f"label word {word!r}")
    assert word in message, f"the error does not name the label word {word!r}: {message}"
    listed: tuple[str, ...] = ()
    try:
        backend.encode(_rows(), [word, *label_words, other])
    except LabelWordError as error:
        listed = error.words
    assert listed in ((), (word, other)), f"the error lists the words {listed}, not {word!r} and {other!r}"


def long_rows_are_cut_and_counted(backend: Backend, label_words: Sequence[str]) -> None:
    """A row longer than the model loses the end of its text, and is counted."""
    long, longer = ("great " * n * backend.info.max_length for n in (2, 3))
    encoded = _encoded(backend, label_words, [long, "great", longer])
    equal("n_truncated of two long rows", encoded.n_truncated, 2)
    scores = backend.label_scores(prompts_of(backend, 2), encoded)
    close("scores of two rows that are equal as far as the model reads", scores[:, 0], scores[:, 2])


def a_template_that_does_not_fit_is_refused(backend: Backend, label_words: Sequence[str]) -> None:
    """A prompt as long as the model leaves no room for the mask."""
    longest = backend.info.max_length
    rows = _rows(n_tokens=longest)
    message = refused(lambda: backend.encode(rows, label_words), BackendError, f"{longest} prompt tokens")
    assert str(longest) in message, f"the error does not say that the model takes {longest} tokens: {message}"


BACKEND_CHECKS: tuple[Callable[[Backend, Sequence[str]], None], ...] = (
    info_tells_the_truth,
    ordinary_ids_can_be_drawn,
    encoded_rows_are_counted,
    scores_have_the_shape_asked_for,
    scores_depend_on_all_that_they_are_of,
    candidates_are_independent,
    the_same_call_gives_the_same_bits,
    any_memory_layout_will_do,
    rows_without_a_prompt_take_empty_prompts,
    prompts_of_another_shape_are_refused,
    no_rows_are_refused,
    a_label_word_of_several_tokens_is_refused,
    long_rows_are_cut_and_counted,
    a_template_that_does_not_fit_is_refused,
)
"""The clauses of the contract, each a function of a backend and label words (K,)."""


def check_reads_prompts_as_words(
    backend: Backend, label_words: Sequence[str] = ("bad", "great"), text: str = "a film so bad that it was great"
) -> None:
    """Check that the word embeddings of a text, as a prompt, score as that text does where the prompt stands.

    Raises:
        AssertionError: they do not.
    """
    words = backend.embed_text(text)
    # The full stop in front: at the very start of a row, a byte-level word is another token than after a space.
    prompted, written = Template(". {prompt} . {text} It was {mask}"), Template(". {text_pair} . {text} It was {mask}")
    soft = backend.encode([prompted.render(t, "", words.shape[1]) for t in TEXTS], label_words)
    hard = backend.encode([written.render(t, text, 0) for t in TEXTS], label_words)
    equal("n_tokens of rows with a prompt of words and with those words", soft.n_tokens, hard.n_tokens)
    expected = backend.label_scores(words[:, :0], hard)
    close("scores of a prompt of words and of those words", backend.label_scores(words, soft), expected)


def _rows(texts: Sequence[str] = TEXTS, n_tokens: int = N_TOKENS) -> list[Row]:
    return [TEMPLATE.render(text, "", n_tokens) for text in texts]


def _encoded(
    backend: Backend, label_words: Sequence[str], texts: Sequence[str] = TEXTS, n_tokens: int = N_TOKENS
) -> Encoded:
    return backend.encode(_rows(texts, n_tokens), label_words)


def prompts_of(backend: Backend, n: int) -> Prompts:
    """Prompts (n, T, H) of about the size of word embeddings, the same at every call."""
    shape = (n, N_TOKENS, backend.info.hidden_size)
    return np.random.default_rng(0).normal(0, backend.info.embedding_std, shape).astype(np.float32)


def equal(what: str, value: object, expected: object) -> None:
    """Check that a value is the expected one."""
    assert value == expected, f"{what}: expected {expected}, got {value}."


def close(what: str, values: Scores, expected: Scores) -> None:
    """Check that numbers are the expected ones but for rounding."""
    difference = float(np.abs(values - expected).max())
    assert difference <= TOLERANCE * (1 + float(np.abs(expected).max())), f"{what} differ by {difference:.3g}."


def refused(call: Callable[[], object], error: type[Exception], what: str) -> str:
    """The message of the error that the call ends in."""
    try:
        call()
    except error as refusal:
        return str(refusal)
    raise AssertionError(f"{what}: expected a {error.__name__}, but it was accepted.")
