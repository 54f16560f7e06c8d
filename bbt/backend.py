"""The `Backend` protocol is the only thing that the search knows of a model, and it is forward-only.

A row reaches the backend as *segments*: fixed template text, the example's own text (the only part that may
be truncated), prompt slots and the mask. The backend tokenises them once and scores whole populations after.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bbt.errors import BackendError, ConfigError
from bbt.types import DeepPrompts, Prompts, RowScores, Scores, TokenIds


@dataclass(frozen=True)
class Segment:
    """One piece of a rendered template. A row is a sequence of these."""

    kind: Literal["literal", "text", "whole", "prompt", "start", "mask", "target"]
    """`literal` is template text, `text` is the example's own text, `whole` is such a text that is never cut, `prompt`
    stands for soft prompt tokens, `start` for soft prompt tokens before everything else in the row (BOS and [CLS]
    included), `mask` for the position whose label words are scored, and `target` for the text that comes next, whose
    likelihood is scored or in whose place text is generated."""
    text: str = ""
    """The text of a `literal`, a `text`, a `whole` or a `target`; where a row is too long for the model, only a `text`
    is cut."""
    n_tokens: int = 0
    """The number of tokens T that a `prompt` or a `start` stands for."""


Row: TypeAlias = tuple[Segment, ...]
"""One rendered example: its pieces from left to right."""


@dataclass(frozen=True)
class ModelInfo:
    """What the search may know of a model."""

    name: str
    """The name by which the model was asked for."""
    kind: Literal["masked", "causal", "encoder-decoder"]
    """Whether the label words are scored at a mask, after the last token, or as what a decoder says first."""
    architecture: str
    """The model's class as `transformers` calls it, or what an endpoint calls it."""
    hidden_size: int
    """The width H of a prompt token's vector, which is that of a word embedding."""
    n_layers: int
    """The number of layers L."""
    vocab_size: int
    """The number of word embeddings V."""
    max_length: int
    """The most tokens that a row may have, prompt tokens included."""
    embedding_std: float
    """The standard deviation over all numbers of the word embeddings (V, H); BBT's released code scales A by it."""
    fingerprint: str
    """A digest of the weights, so that a saved prompt is not used on another model by accident."""
    device: str
    """The device that computes, such as cpu or cuda; of a text-only endpoint its address."""
    precision: str
    """The floating-point format that the model computes in, such as float32 or bfloat16."""


class Encoded(Protocol):
    """The tokenised rows of one split, of which the search knows these counts and nothing else."""

    @property
    def n_examples(self) -> int:
        """The number of rows B."""

    @property
    def n_tokens(self) -> int:
        """The number of tokens of all rows together, prompt tokens included."""

    @property
    def n_truncated(self) -> int:
        """The number of rows whose text was cut to fit the model."""


class Backend(Protocol):
    """A model that offers its forward pass and nothing else."""

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
        """The word embeddings (1, T, H) of a text, without special tokens."""

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """The word embeddings (1, T, H) of token ids."""

    def ordinary_ids(self) -> list[int]:
        """The ids of all tokens that are not special, from which a random prompt is drawn."""


class Trainable(Protocol):
    """A copy of a backend's model, for one training: fp32 weights, all frozen until a method thaws some.

    Tensors and modules are PyTorch's (`Any` here, where PyTorch is not imported). The forward pass runs under bf16
    autocast where the backend's precision is bf16, else in fp32.
    """

    @property
    def model(self) -> Any:
        """The `transformers` model (`torch.nn.Module`): thaw its weights or put modules into it."""

    def put_prefix(self, n_tokens: int, cache: Callable[[int], Any]) -> None:
        """Put keys and values of `n_tokens` tokens left of every row in every layer, from now on; `cache` makes them,
        as a `transformers` Cache, for a batch of the size given."""

    def encode(self, rows: Sequence[Row], label_words: Sequence[str]) -> Encoded:
        """Tokenise rows as `Backend.encode` does, and leave room for the prefix."""

    def logits(self, encoded: Encoded, rows: Sequence[int], prompt: Any = None) -> Any:
        """The logits (b, K) of the rows named. They can be differentiated in the prompt, which is one for all rows
        (T, H) or one for each (b, T, H), and in every thawed weight."""

    def scores(self, encoded: Encoded) -> RowScores:
        """The logits (B, K) of all rows, in eval mode and without gradients."""

    def encode_pairs(self, rows: Sequence[Row]) -> "EncodedPairs":
        """Tokenise rows that end in targets as `TargetBackend.encode_pairs` does, and leave room for the prefix."""

    def target_log_likelihoods(self, encoded: "EncodedPairs", rows: Sequence[int], prompt: Any = None) -> Any:
        """The log-likelihoods (b,) in nats of the targets of the rows named, each summed over its tokens. They can be
        differentiated as `logits` can."""

    def target_scores(self, encoded: "EncodedPairs") -> RowScores:
        """The log-likelihoods (B,) of all targets, in eval mode and without gradients."""

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> Encoded:
        """Tokenise what stands left of targets as `GenerationBackend.encode_contexts` does, and leave room for the
        prefix."""

    def generate(self, encoded: Encoded, decoding: "Decoding") -> list[str]:
        """Have the model write a text in the place of each row's target, in eval mode, as `GenerationBackend.generate`
        does without a prompt."""

    def text(self, token_ids: Sequence[int]) -> str:
        """The readable text of token ids."""

    def n_tokens(self, text: str) -> int:
        """The number of tokens of a text, as it stands after other words."""


@runtime_checkable
class GradientBackend(Backend, Protocol):
    """A backend whose model can be differentiated; remote and forward-only ones cannot."""

    def trainable(self) -> Trainable:
        """Make a fresh copy of the model. What is done to the copy leaves the backend as it is."""


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
        """The standard deviations (L,) of the hidden states that enter each layer on these rows under a deep prompt
        (1, L, T, H).

        Layer 0's is taken over all word embeddings as they are. Above it the values are first clipped to mean +- 3
        standard deviations, five times. Both are as in BBTv2's released code.
        """


@dataclass(frozen=True)
class Features:
    """What the frozen model makes of one row of N tokens."""

    hidden_states: NDArray[np.float32]
    """(N, H) last hidden states."""
    read: int
    """The position, from 0 on, at which the model scores the label words; of an encoder-decoder that of the mask, or
    the last one."""


@runtime_checkable
class FeatureBackend(Backend, Protocol):
    """A backend that also hands out hidden states."""

    def features(self, encoded: Encoded) -> list[Features]:
        """The features of each row; the rows must hold no prompt tokens."""


@runtime_checkable
class LikelihoodBackend(Backend, Protocol):
    """A backend that also says how likely the model finds a text."""

    def token_log_likelihoods(self, encoded: Encoded) -> list[NDArray[np.float32]]:
        """The log-likelihood (in nats) of each token of each row, special tokens and the mask left out.

        A causal LM's are conditioned on what stands left of the token, so the first has none. A masked LM's are
        conditioned on the whole row: each token is masked in turn (pseudo-log-likelihood, Salazar et al. 2020,
        arXiv 1910.14659), one forward pass a token. The rows must hold no prompt tokens.
        """


@runtime_checkable
class EncodedPairs(Encoded, Protocol):
    """Tokenised rows with their targets."""

    @property
    def n_target_tokens(self) -> NDArray[np.int64]:
        """The number of tokens (B,) of each row's target."""


@runtime_checkable
class TargetBackend(Backend, Protocol):
    """A backend that also says how likely a text of several tokens is to come next (causal LMs and
    encoder-decoders)."""

    def encode_pairs(self, rows: Sequence[Row]) -> EncodedPairs:
        """Tokenise rows, each of which ends in a `target`, once for many calls of `target_log_likelihoods`. One space
        left of the target belongs to its first word, as at `{mask}`. What a decoder says ends with the model's
        end-of-sequence token, as its training texts did: that token is scored and counted as one of the target's.

        Raises:
            BackendError: a masked LM; a row that does not end in its target; or one that does not fit the model
                even with its text cut away.
        """

    def target_log_likelihoods(self, prompts: Prompts, encoded: EncodedPairs) -> RowScores:
        """Score every row's target under every prompt: (n, T, H) -> (n, B) float32. The score is the log-likelihood in
        nats, summed over the target's tokens, given all that stands left of the target."""


@dataclass(frozen=True)
class Decoding:
    """The settings by which text is generated."""

    max_new_tokens: int = 32
    """The most tokens of a generated text."""
    stop: tuple[str, ...] = ("\n",)
    """The strings that end a text: it ends before the first of them, or at the model's end of sequence."""
    n_beams: int = 1
    """The number of beams of a beam search; with 1 the text is decoded greedily or sampled."""
    sample: bool = False
    """Whether each token is drawn instead of the likeliest being taken."""
    temperature: float = 1.0
    """The temperature of the draw."""
    top_p: float = 1.0
    """The probability that the likeliest tokens, from which is drawn, have together."""
    seed: int = 0
    """The seed of the draw. What is drawn for a row depends on it and on the row's own tokens."""

    def __post_init__(self) -> None:
        """Check that text can be generated so.

        Raises:
            ConfigError: a number out of its range, an empty stop string, or beams that are to be sampled.
        """
        for name, sound, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("stop", "" not in self.stop, "strings that are not empty"),
            ("n_beams", self.n_beams >= 1, "1 or more"),
            ("n_beams", self.n_beams == 1 or not self.sample, "1 where tokens are sampled"),
            ("temperature", 0 < self.temperature < float("inf"), "a number above 0"),
            ("top_p", 0 < self.top_p <= 1, "a number above 0, and 1 at most"),
            ("seed", 0 <= self.seed < 2**32, "0 or more, and below 2^32"),
        ):
            if not sound:
                raise ConfigError(f"decoding.{name} is {getattr(self, name)!r}: expected {expected}.")


@runtime_checkable
class GenerationBackend(Backend, Protocol):
    """A backend that also generates text."""

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> Encoded:
        """Tokenise what stands left of the `target` in which each row ends, leaving room for the new tokens.

        Raises:
            BackendError: as `TargetBackend.encode_pairs`.
        """

    def generate(self, prompt: Prompts, encoded: Encoded, decoding: Decoding) -> list[str]:
        """Have the model write a text in the place of each row's target under one prompt (1, T, H). The text comes
        without the string that ended it, and without blanks around it."""


@dataclass(frozen=True)
class PlainText:
    """What anybody must tokenise to have the tokens that the backend's rows of a template have, so that a prompt can be
    used without bbt."""

    text: str
    """A text to be formatted with `text` and, for pairs, `text_pair`. It ends where a causal LM's label word comes, and
    holds a masked LM's mask token."""
    add_special_tokens: bool
    """Whether the tokenizer is to add its special tokens; otherwise the text holds them already."""
    leading_ids: tuple[int, ...]
    """Ids of the tokens that stand before the soft prompt's, a BOS or [CLS]; empty where the prompt stands at the very
    start."""
    label_ids: tuple[int, ...]
    """(K,) token ids of the label words."""
    decoder_ids: tuple[int, ...] = ()
    """(M,) ids of the tokens that an encoder-decoder's decoder is given before the label word; empty for others."""
    target_ids: tuple[tuple[int, ...], ...] = ()
    """(K,) token ids of each label, where whole labels are scored instead of label words."""


@runtime_checkable
class PlainBackend(Backend, Protocol):
    """A backend that can say how its rows look without it."""

    def plain_text(
        self, render: Callable[[str, str], Row], label_words: Sequence[str], targets: Sequence[str] = ()
    ) -> PlainText:
        """Describe exactly the rows that `render` makes of a text and a second text, with the label words, or the
        labels that are scored as `targets` in the mask's place.

        Raises:
            BackendError: there is no such text, as where the prompt stands after the text; or a label word is not one
                token.
        """


@dataclass
class Traffic:
    """What the answered exchanges with an endpoint have cost. An exchange that failed is not counted, since nobody can
    know how much of it crossed the wire."""

    bytes_up: int = 0
    """Bytes sent, HTTP heads included."""
    bytes_down: int = 0
    """Bytes received, HTTP heads included."""
    tokens_up: int = 0
    """Tokens sent that the endpoint says it bills (0: it does not say)."""
    tokens_down: int = 0
    """Tokens generated that the endpoint says it bills (0: it does not say)."""
    written_up: int = 0
    """Those of `tokens_up` that were sent to have a text written."""
    written_down: int = 0
    """Those of `tokens_down` that are of a text that was written. An endpoint may say what it bills for texts and not
    what it bills for scores."""


@runtime_checkable
class RemoteBackend(Protocol):
    """The protocol of a backend behind a wire, beside `Backend`: the ledger counts the bytes of its traffic instead of
    the arrays'."""

    @property
    def traffic(self) -> Traffic:
        """The traffic of all scoring calls so far. What is sent once (rows, a prompt space) is not counted in it."""


@runtime_checkable
class HearingBackend(Protocol):
    """The protocol, beside `Backend`, of a backend that refuses to go on by what its answers have held so far, such as
    an endpoint that never lists a label word. A run records that with its events, and tells it when it is resumed."""

    @property
    def heard(self) -> dict[str, Any]:
        """What the answers have held so far, as JSON has it."""

    def hear(self, heard: Mapping[str, Any]) -> None:
        """Take it that the answers have held this as well, which an earlier process had `heard`."""


@runtime_checkable
class DeviceBackend(Protocol):
    """The protocol, beside `Backend`, of a backend whose model lies in a memory of its own beside the process's, as on
    a GPU."""

    def peak_memory_mb(self) -> float | None:
        """The most MB of the device that this process has held at a time; None where the model is in the process's own
        memory after all."""


@runtime_checkable
class HardBackend(Protocol):
    """The protocol, beside `Backend`, of a backend that takes prompts of words: every text-only endpoint, and local
    models too."""

    def hard_scores(self, token_ids: TokenIds, encoded: Encoded) -> Scores:
        """Score every row under prompts of tokens: (n, T) -> (n, B, K) float32, as `label_scores`."""

    def prompt_ids(self, text: str) -> list[int]:
        """The token ids of a text as it stands after other words, without special tokens."""

    def prompt_text(self, token_ids: Sequence[int]) -> str:
        """The text of a hard prompt's tokens."""


def check_anchor(anchor: Prompts, n_prompt_tokens: int, hidden_size: int) -> None:
    """Check an anchor that rows of T > 0 prompt tokens are to be encoded with; every backend calls this.

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
    """Return the backend as one that has the capability, a protocol of this module. `who` is named in the error as the
    one that needs it.

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
