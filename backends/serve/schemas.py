"""Bodies of the JSON routes; they make the OpenAPI page."""

from typing import Annotated, Literal

from pydantic import Field

from backends.serve.limits import Limits
from bbt.backend import ModelInfo, Segment
from bbt.settings import Strict

Id = Annotated[str, Field(pattern="^[0-9a-f]{16}$", description="what a registration answered")]


class Model(Strict):
    """The model served, and what the server takes."""

    info: ModelInfo
    limits: Limits


class Ids(Strict):
    """Token ids that are not special, as half-open ranges."""

    ranges: list[tuple[int, int]]


class Words(Strict):
    """A text, or token ids: one of both."""

    text: str | None = Field(None, max_length=50_000)
    ids: list[Annotated[int, Field(ge=0)]] | None = None


class RowSet(Strict):
    """Rows of one number of prompt tokens, as segments, and the label words to score."""

    rows: list[list[Segment]] = Field(min_length=1)
    label_words: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(min_length=1)


class Registered(Strict):
    """What was registered."""

    id: str


class RegisteredRows(Registered):
    """Counts of the tokenised rows."""

    n_examples: int
    n_tokens: int
    n_truncated: int


class Space(Strict):
    """p0 + A z: a registered prompt, what A is drawn from, and the SHA-256 over both (`PromptSpace.checksum`)."""

    p0: Id
    seed: int = Field(ge=0, lt=2**63)
    intrinsic_dim: int = Field(ge=1)
    projection: Literal["uniform", "normal", "orthonormal"]
    scale: float = Field(gt=0)
    tied: bool = False
    checksum: str = Field(pattern="^[0-9a-f]{64}$")


class Fault(Strict):
    """Why a request was refused."""

    error: str
    detail: str
