"""The bodies of the JSON routes are these models; the OpenAPI page is made of them."""

from typing import Annotated, Literal

from pydantic import Field

from backends.serve.limits import Limits
from bbt.backend import Decoding, ModelInfo, Segment
from bbt.settings import Strict

Id = Annotated[str, Field(pattern="^[0-9a-f]{16}$", description="what a registration answered")]


class Model(Strict):
    """The model served, and what the server takes."""

    info: ModelInfo
    """Facts about the model."""
    limits: Limits
    """What one request may have."""


class Ids(Strict):
    """The ids of tokens that are not special."""

    ranges: list[tuple[int, int]]
    """Half-open ranges (first id, id after the last)."""


class Words(Strict):
    """A text, or token ids: one of both."""

    text: str | None = Field(None, max_length=50_000)
    """The text to embed."""
    ids: list[Annotated[int, Field(ge=0)]] | None = None
    """The token ids to embed."""


class RowSet(Strict):
    """Rows of one number of prompt tokens, as segments, and the label words to score."""

    rows: list[list[Segment]] = Field(min_length=1)
    """(B,) rows as segments, all of the same number of prompt tokens."""
    label_words: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(min_length=1)
    """(K,) words to score."""


class PairSet(Strict):
    """Rows of one number of prompt tokens, as segments, each of which ends in its target."""

    rows: list[list[Segment]] = Field(min_length=1)
    """(B,) rows as segments, all of the same number of prompt tokens."""


class ContextSet(PairSet):
    """Rows that are to be written on in the place of their targets."""

    max_new_tokens: int = Field(ge=1)
    """The tokens that are left room for after each of them."""


class Writing(Strict):
    """What is to be written."""

    rows: Id
    """The id of registered contexts."""
    prompt: Id | None = None
    """The id of a registered prompt (1, T, H) (none: the contexts hold no prompt tokens)."""
    decoding: Decoding
    """How text is generated."""


class Written(Strict):
    """Generated texts."""

    texts: list[str]
    """(B,) the texts, without what ended them."""
    n_tokens: int
    """The number of their tokens (0: the model does not tell)."""


class Texts(Strict):
    """Texts to classify, or pairs of them."""

    texts: list[str] = Field(min_length=1)
    """(B,) the texts."""
    text_pairs: list[str] | None = None
    """(B,) second texts, where the task reads two a row."""


class LabelAnswer(Strict):
    """What a run that has learnt labels says of a text."""

    label: str | None
    """The likeliest label (none: all are equally likely)."""
    probabilities: dict[str, float]
    """The probability of each label."""


class TextAnswer(Strict):
    """What a run that answers with texts says to a text."""

    output: str
    """The text."""


class Answers(Strict):
    """The answers to texts, in their order."""

    answers: list[LabelAnswer | TextAnswer]
    """(B,) an answer for each text."""


class Registered(Strict):
    """The answer to a registration."""

    id: str
    """The id under which the server holds what was registered."""


class RegisteredRows(Registered):
    """The answer to a registration of rows, with counts of the tokenised rows."""

    n_examples: int
    """The number of rows B."""
    n_tokens: int
    """Tokens of all rows, prompt tokens included."""
    n_truncated: int
    """Rows whose text was cut."""


class RegisteredPairs(RegisteredRows):
    """The answer to a registration of rows with their targets."""

    n_target_tokens: list[int]
    """(B,) tokens of each row's target."""


class Space(Strict):
    """A prompt space p0 + A z: a registered prompt, and what A is drawn from."""

    p0: Id
    """The id of a registered prompt (1, T, H)."""
    seed: int = Field(ge=0, lt=2**63)
    """The seed of A's draw."""
    intrinsic_dim: int = Field(ge=1)
    """d, the number of A's columns."""
    projection: Literal["uniform", "normal", "orthonormal"]
    """The distribution of A's entries: see `bbt.spaces.soft.random_projection`."""
    scale: float = Field(gt=0)
    """The size of A's entries."""
    tied: bool = False
    """Whether all prompt tokens are moved alike."""
    checksum: str = Field(pattern="^[0-9a-f]{64}$")
    """The SHA-256 over p0 and A (`PromptSpace.checksum`)."""


class Fault(Strict):
    """Why a request was refused."""

    error: str
    """The kind of fault."""
    detail: str
    """What was given, what was expected and what to do."""
