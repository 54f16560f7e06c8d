"""The sizes that a server takes are limits, which its operator may change."""

from pydantic import Field

from bbt.settings import Strict


class Limits(Strict):
    """The sizes of one request, and how much one key may have registered; there is room for the paper's tasks."""

    body_bytes: int = Field(64 * 2**20, ge=1024, description="a request's body")
    rows: int = Field(1024, ge=1, description="rows of one registration")
    row_characters: int = Field(50_000, ge=1, description="text of one row; the model's length cuts it further")
    row_segments: int = Field(64, ge=1, description="pieces of one row")
    label_words: int = Field(256, ge=1, description="K")
    prompt_tokens: int = Field(512, ge=1, description="T")
    intrinsic_dim: int = Field(10_000, ge=1, description="d")
    projection_bytes: int = Field(512 * 2**20, ge=1, description="A of one prompt space")
    new_tokens: int = Field(65_536, ge=1, description="rows times new tokens of one request for texts")
    beams: int = Field(16, ge=1, description="beams of one text")
    stops: int = Field(16, ge=0, description="stop strings, of 200 characters at most")
    candidates: int = Field(1024, ge=1, description="n of one request")
    sequences: int = Field(16_384, ge=1, description="rows times candidates of one request")
    embedded_tokens: int = Field(2000, ge=0, description="different tokens whose word embeddings a key is told")
    kept: int = Field(
        32, ge=2, description="row sets of a kind, and prompts, a key has registered; the least used goes"
    )
    kept_spaces: int = Field(4, ge=1, description="prompt spaces a key has registered")
    queue: int = Field(64, ge=1, description="requests that wait for the model; more are told to come back")
