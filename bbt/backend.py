"""The `Backend` protocol: the only thing the search knows of a model, and it is forward-only.

A row reaches the backend as *segments*: fixed template text, the example's own text (the only part that may
be truncated), prompt slots and the mask. The backend tokenises them once and scores whole populations after.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bbt.errors import BackendError
from bbt.types import DeepPrompts, Prompts, RowScores, Scores, TokenIds


@dataclass(frozen=True)
class Segment:
    """One piece of a rendered template.

    `literal` is template text, `text` the example's text (truncated first if the row is too long), `whole` one that is
    never cut, `prompt` stands for `n_tokens` soft prompt tokens, `start` for as many at the very start of the row,
    before BOS or [CLS], `mask` for the position whose label words are scored, `target` for the text that is to come
    next, whose likelihood is scored or in whose place text is generated.
    """

    kind: Literal["literal", "text", "whole", "prompt", "start", "mask", "target"]
    text: str = ""
    n_tokens: int = 0


Row: TypeAlias = tuple[Segment, ...]
"""One rendered example."""


@dataclass(frozen=True)
class ModelInfo:
    """What the search may know of a model.

    `embedding_std` is the standard deviation over all word embeddings (BBT's released code scales A by it);
    `fingerprint` identifies the weights, so that a saved prompt is not used on another model by accident.
    """

    name: str
    kind: Literal["masked", "causal"]
    architecture: str
    hidden_size: int
    n_layers: int
    vocab_size: int
    max_length: int
    embedding_std: float
    fingerprint: str
    device: str
    precision: str


class Encoded(Protocol):
    """Tokenised rows of one split: opaque to the search but for these counts."""

    @property
    def n_examples(self) -> int:
        """B."""

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows together, prompt tokens included."""

    @property
    def n_truncated(self) -> int:
        """Rows whose text was cut to fit the model."""


class Backend(Protocol):
    """A model of which only the forward pass can be had."""

    @property
    def info(self) -> ModelInfo:
        """Facts about the model."""

    def encode(self, rows: Sequence[Row], label_words: Sequence[str], anchor: Prompts | None = None) -> Encoded:
        """Tokenise rows once for many calls of `label_scores`.

        Without an `anchor` a prompt's vectors are word embeddings: they enter the model where a word's would. With an
        anchor (1, T, H) the anchor's vectors enter there, and the prompt's difference from it is added after the
        embedding LayerNorm, where BBT's released code adds A z. Rows that hold no prompt tokens need no anchor and
        pay no heed to one.

        Raises:
            LabelWordError: a label word is not one token.
            BackendError: a row does not fit the model even with its text cut away; or the anchor is not one prompt of
                as many tokens as the rows hold, or the model has no LayerNorm after its embeddings.
        """

    def label_scores(self, prompts: Prompts, encoded: Encoded) -> Scores:
        """Score every row under every prompt: (n, T, H) -> (n, B, K) float32.

        Scores are defined up to one constant per (candidate, example): logits and log-probabilities are
        equally good. Candidates are independent of each other.
        """

    def embed_text(self, text: str) -> Prompts:
        """Word embeddings of a text without special tokens: (1, T, H)."""

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """Word embeddings of token ids: (1, T, H)."""

    def ordinary_ids(self) -> list[int]:
        """Ids of all tokens that are not special: what a random prompt is drawn from."""


class Trainable(Protocol):
    """A copy of a backend's model, for one training: fp32 weights, all frozen until a method thaws some.

    Tensors and modules are PyTorch's (`Any` here, where PyTorch is not imported). The forward pass runs under bf16
    autocast where the backend's precision is bf16, else in fp32.
    """

    @property
    def model(self) -> Any:
        """The `transformers` model (`torch.nn.Module`): thaw its weights or put modules into it."""

    def put_prefix(self, n_tokens: int, cache: Callable[[int], Any]) -> None:
        """From now on keys and values of `n_tokens` tokens stand left of every row in every layer; `cache` makes
        them, as a `transformers` Cache, for a batch of the size given."""

    def encode(self, rows: Sequence[Row], label_words: Sequence[str]) -> Encoded:
        """Tokenise rows as `Backend.encode` does, leaving room for the prefix."""

    def logits(self, encoded: Encoded, rows: Sequence[int], prompt: Any = None) -> Any:
        """Logits (b, K) of the rows named, differentiable in the prompt (T, H), or a prompt a row (b, T, H), and in
        every thawed weight."""

    def scores(self, encoded: Encoded) -> RowScores:
        """(B, K) logits of all rows, in eval mode and without gradients."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Token ids as readable text."""


@runtime_checkable
class GradientBackend(Backend, Protocol):
    """A backend whose model can be differentiated; remote and forward-only ones cannot."""

    def trainable(self) -> Trainable:
        """A fresh copy of the model. What is done to it leaves the backend as it is."""


@runtime_checkable
class DeepBackend(Backend, Protocol):
    """A backend that also takes a prompt for every layer (BBTv2, arXiv 2205.11200, section 4.1)."""

    def deep_label_scores(self, prompts: DeepPrompts, encoded: Encoded) -> Scores:
        """Score every row under every deep prompt: (n, L, T, H) -> (n, B, K) float32.

        `prompts[:, 0]` is what `label_scores` takes; `prompts[:, i]` is added to the hidden states at the prompt's
        positions before layer i. What stands below the lowest layer at which the candidates differ is computed
        once for all of them, and kept until these rows are scored under another lower part.

        Raises:
            BackendError: prompts of another shape, or a model without a list of layers.
        """

    def hidden_stds(self, prompts: DeepPrompts, encoded: Encoded) -> NDArray[np.float64]:
        """(1, L, T, H) -> (L,) standard deviations of the hidden states that enter each layer on these rows.

        Layer 0: of all word embeddings, as they are. Above it the values are clipped to mean +- 3 std five times
        before. Both as in BBTv2's released code.
        """


@dataclass(frozen=True)
class Features:
    """What the frozen model makes of a row of N tokens: the last hidden states (N, H), and the position `read` at
    which it scores the label words."""

    hidden_states: NDArray[np.float32]
    read: int


@runtime_checkable
class FeatureBackend(Backend, Protocol):
    """A backend that also hands out hidden states."""

    def features(self, encoded: Encoded) -> list[Features]:
        """The features of each row; the rows must hold no prompt tokens."""


@runtime_checkable
class LikelihoodBackend(Backend, Protocol):
    """A backend that also says how likely the model finds a text."""

    def token_log_likelihoods(self, encoded: Encoded) -> list[NDArray[np.float32]]:
        """For each row the log-likelihood of each of its tokens, special tokens and the mask left out.

        A causal LM's are conditioned on what stands left of the token, so the first has none. A masked LM's are
        conditioned on the whole row: each token is masked in turn (pseudo-log-likelihood, Salazar et al. 2020,
        arXiv 1910.14659), one forward pass a token. The rows must hold no prompt tokens.
        """


@runtime_checkable
class EncodedPairs(Encoded, Protocol):
    """Tokenised rows with their targets."""

    @property
    def n_target_tokens(self) -> NDArray[np.int64]:
        """(B,) tokens of each row's target."""


@runtime_checkable
class TargetBackend(Backend, Protocol):
    """A backend that also says how likely a text of several tokens is to come next (causal LMs)."""

    def encode_pairs(self, rows: Sequence[Row]) -> EncodedPairs:
        """Tokenise rows, each of which ends in a `target`, once for many calls of `target_log_likelihoods`. One space
        left of the target belongs to its first word, as at `{mask}`.

        Raises:
            BackendError: not a causal LM; a row that does not end in its target; or one that does not fit the model
                even with its text cut away.
        """

    def target_log_likelihoods(self, prompts: Prompts, encoded: EncodedPairs) -> RowScores:
        """The log-likelihood of every row's target, its tokens' summed, under every prompt: (n, T, H) -> (n, B)
        float32, given all that stands left of it."""


@dataclass(frozen=True)
class Decoding:
    """How text is generated."""

    max_new_tokens: int = 32
    """A row ends after so many tokens at the latest."""
    stop: tuple[str, ...] = ("\n",)
    """A row ends before the first of these strings, or at the model's end of sequence."""
    n_beams: int = 1
    """Beams of a search; 1: greedy, or sampled."""
    sample: bool = False
    """Whether each token is drawn instead of the likeliest being taken."""
    temperature: float = 1.0
    """Of the draw."""
    top_p: float = 1.0
    """The draw is from the likeliest tokens that have this probability together."""
    seed: int = 0
    """Of the draw; rows of one batch are drawn one after the other."""


@runtime_checkable
class GenerationBackend(Backend, Protocol):
    """A backend that also writes on."""

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> Encoded:
        """Tokenise what stands left of the `target` in which each row ends, leaving room for the new tokens.

        Raises:
            BackendError: as `TargetBackend.encode_pairs`.
        """

    def generate(self, prompt: Prompts, encoded: Encoded, decoding: Decoding) -> list[str]:
        """What the model writes in the place of each row's target under one prompt (1, T, H): without the string that
        ended it, and without blanks around it."""


@dataclass(frozen=True)
class PlainText:
    """What anybody must tokenise to have the tokens that the backend's rows of a template have, so that a prompt can be
    used without bbt."""

    text: str
    """To be formatted with `text` and, for pairs, `text_pair`; it ends where a causal LM's label word comes, and holds
    a masked LM's mask token."""
    add_special_tokens: bool
    """Whether the tokenizer adds its special tokens, or the text holds them already."""
    leading_ids: tuple[int, ...]
    """Tokens that stand before the soft prompt's: a BOS or [CLS], where the prompt does not stand at the very start."""
    label_ids: tuple[int, ...]
    """(K,) token ids of the label words."""


@runtime_checkable
class PlainBackend(Backend, Protocol):
    """A backend that can say how its rows look without it."""

    def plain_text(self, render: Callable[[str, str], Row], label_words: Sequence[str]) -> PlainText:
        """What stands for the rows that `render` makes of a text and a second text, exactly.

        Raises:
            BackendError: there is no such text, as where the prompt stands after the text; or a label word is not one
                token.
        """


@dataclass
class Traffic:
    """Bytes of answered exchanges with an endpoint, HTTP heads included. What a fault swallowed is counted nowhere:
    how much of it crossed the wire cannot be known. Tokens are those that the endpoint says it bills; 0: it does not
    say."""

    bytes_up: int = 0
    bytes_down: int = 0
    tokens_up: int = 0
    tokens_down: int = 0


@runtime_checkable
class RemoteBackend(Protocol):
    """What a backend behind a wire has besides: the ledger then counts its bytes and not the arrays'."""

    @property
    def traffic(self) -> Traffic:
        """Bytes of all scoring calls so far; what is sent once (rows, a prompt space) is not in it."""


@runtime_checkable
class DeviceBackend(Protocol):
    """What a backend has besides whose model lies in memory of its own, beside the process's."""

    def peak_memory_mb(self) -> float | None:
        """The most MB of the device that this process has held at a time; None where the model is in the process's
        own memory after all."""


@runtime_checkable
class HardBackend(Protocol):
    """What a backend that takes prompts of words has besides: every text-only endpoint, and local models too."""

    def hard_scores(self, token_ids: TokenIds, encoded: Encoded) -> Scores:
        """Score every row under prompts of tokens: (n, T) -> (n, B, K) float32, as `label_scores`."""

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a text as it stands after other words, without special tokens."""

    def prompt_text(self, token_ids: Sequence[int]) -> str:
        """The text of a hard prompt's tokens."""


def check_anchor(anchor: Prompts, n_prompt_tokens: int, hidden_size: int) -> None:
    """Every backend's check of an anchor that rows of T > 0 prompt tokens are encoded with.

    Raises:
        BackendError: it is not one prompt (1, T, H).
    """
    if anchor.ndim != 3 or anchor.shape[::2] != (1, hidden_size):
        raise BackendError(f"the anchor has shape {anchor.shape}, expected (1, T, {hidden_size}).")
    if anchor.shape[1] != n_prompt_tokens:
        raise BackendError(f"prompts have {n_prompt_tokens} tokens, the anchor {anchor.shape[1]}.")


Capability = TypeVar("Capability")

_OFFERS: dict[type[Any], str] = {
    GradientBackend: "gradients",
    DeepBackend: "deep prompts",
    FeatureBackend: "hidden states (features)",
    LikelihoodBackend: "token likelihoods",
    HardBackend: "hard prompts (words)",
    TargetBackend: "likelihoods of targets of several tokens",
    GenerationBackend: "generated text",
    PlainBackend: "its tokenizer (rows as plain texts)",
}
"""What each capability is called in an error."""


def require(backend: Backend, capability: type[Capability], who: str = "this") -> Capability:
    """The backend as one that has the capability, a protocol of this module; `who` needs it.

    Raises:
        BackendError: it has not.
    """
    if isinstance(backend, capability):
        return backend
    elsewhere = ", or a method that needs none, such as black-box" if capability is GradientBackend else ""
    raise BackendError(
        f"{who} needs {_OFFERS[capability]}, which {type(backend).__name__} does not offer; use model.backend: local"
        f"{elsewhere}."
    )
