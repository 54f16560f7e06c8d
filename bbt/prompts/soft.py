"""A `SoftPrompt` is a prompt of vectors that can be saved, loaded and used, with where it came from."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bbt.backend import Backend, Decoding
from bbt.errors import PromptError
from bbt.files import write_bytes_atomically
from bbt.prompts.peft import decoding_of, is_peft_folder, read_peft, virtual_tokens, write_peft
from bbt.settings import ScoredBy
from bbt.types import Prompts, RowScores

FORMAT = "bbt-soft-prompt/1"

_LISTS = ("label_words", "label_names", "biases", "words")


@dataclass(frozen=True)
class SoftPrompt:
    """A soft or deep prompt, with what it was tuned for and where it came from."""

    embeddings: Prompts
    """(T, H) vectors, or (L, T, H) of a deep prompt; T = 0 is the manual prompt, the template's words alone."""
    model: str
    """The name of the model that it was tuned on."""
    fingerprint: str
    """The digest of that model's weights (empty: a foreign prompt that does not say)."""
    template: str
    """The template that it was tuned with (empty: a foreign prompt that does not say)."""
    label_words: tuple[str, ...]
    """(K,) label words that it was tuned with, in label order."""
    label_names: tuple[str, ...] = ()
    """(K,) what answers call the labels."""
    anchor: Prompts | None = None
    """(T, H) word embeddings after whose LayerNorm the prompt's difference from them is added, as in the released code
    (none: the prompt stands for word embeddings itself)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it came from: task, score, seed, queries, versions and commit."""
    biases: tuple[float, ...] | None = None
    """(K,) class biases that are added to its label scores (none: there are none)."""
    scored_by: ScoredBy = "label_words"
    """What its label scores are: those of the label words, or the likelihood of whole labels."""
    decoding: Decoding | None = None
    """How text is generated (none: it answers with labels)."""
    words: tuple[str, ...] = ()
    """Further words from whose scores, behind those of the label words, its label scores are made."""
    weights: NDArray[np.float32] | None = None
    """(K, M) weights of the label words' and the further words' scores (none: a label's score is its word's)."""

    @property
    def batch(self) -> Prompts:
        """The embeddings as a population of one, (1, T, H) or (1, L, T, H)."""
        return self.embeddings[None]

    @property
    def n_weights(self) -> int:
        """The number of weights by which words are read; 0 where a label's score is its word's."""
        return 0 if self.weights is None else int(self.weights.size)

    def label_scores(self, scores: RowScores) -> RowScores:
        """The label scores (B, K) of rows with scores (B, M) of all words, class biases apart."""
        if self.weights is None:
            return scores[:, : len(self.label_words)]
        return np.asarray(scores.astype(np.float64) @ self.weights.T, np.float32)

    def check_model(self, name: str, fingerprint: str) -> None:
        """Refuse a model with other weights than the prompt was tuned for; a foreign prompt does not say for which.

        Raises:
            PromptError: names both models.
        """
        if self.fingerprint and fingerprint != self.fingerprint:
            raise PromptError(
                f"this prompt was tuned for {self.model} (weights {self.fingerprint}), not for {name} "
                f"(weights {fingerprint}). Load it with its own model."
            )

    def to_peft(self, folder: Path | str, backend: Backend) -> None:
        """Write a folder that `peft.PeftModel.from_pretrained` loads, with `classifier.json` beside: label words, class
        biases, and what to tokenise. `backend` is the prompt's own model, whose tokenizer is asked.

        Raises:
            PromptError, BackendError: the manual prompt, or one that PEFT cannot have exactly.
        """
        if not self.embeddings.size:
            raise PromptError("this is the manual prompt: there is no soft prompt to deploy.")
        vectors, facts = virtual_tokens(self, backend)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_peft(folder, vectors, facts)

    @classmethod
    def from_peft(cls, folder: Path | str) -> "SoftPrompt":
        """A prompt from a folder of PEFT's prompt tuning. One that `to_peft` wrote is the prompt that it was; any other
        has no template and is good for p0.

        Raises:
            PromptError: not a prompt of PEFT's prompt tuning.
        """
        return cls(**read_peft(Path(folder)))

    def save(self, path: Path | str) -> None:
        """Write the prompt as a safetensors file; everything but the arrays goes into its metadata as JSON."""
        from safetensors.numpy import save

        facts = {k: v for k, v in asdict(self).items() if k not in ("embeddings", "anchor", "weights")}
        arrays = {"embeddings": np.ascontiguousarray(self.embeddings, dtype=np.float32)}
        if self.anchor is not None:
            arrays["anchor"] = np.ascontiguousarray(self.anchor, dtype=np.float32)
        if self.weights is not None:
            arrays["weights"] = np.ascontiguousarray(self.weights, dtype=np.float32)
        content = save(arrays, metadata={"format": FORMAT, "prompt": json.dumps(facts)})
        write_bytes_atomically(Path(path), content)

    @classmethod
    def load(cls, path: Path | str) -> "SoftPrompt":
        """Read a prompt file, `prompt.safetensors` in a run folder, or a folder of PEFT's prompt tuning.

        Raises:
            PromptError: no such file, or not a prompt of this format.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if is_peft_folder(path):
            return cls.from_peft(path)
        file = path / "prompt.safetensors" if path.is_dir() else path
        if not file.is_file():
            raise PromptError(f"no prompt at {file}. Give a run folder or a .safetensors file that bbt wrote.")
        try:
            with safe_open(file, "np") as handle:
                metadata = handle.metadata() or {}
                arrays = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise PromptError(f"{file} is not a readable safetensors file: {error}") from error
        if metadata.get("format") != FORMAT or "embeddings" not in arrays:
            raise PromptError(f"{file} is not a soft prompt of format {FORMAT}.")
        try:
            facts = json.loads(metadata["prompt"])
            facts |= {k: tuple(facts[k]) for k in _LISTS if facts.get(k) is not None}
            if facts.get("decoding"):
                facts["decoding"] = decoding_of(facts["decoding"])
            return cls(**arrays, **facts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PromptError(f"{file} is damaged: its metadata do not describe a prompt ({error!r}).") from error
