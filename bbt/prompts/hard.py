"""A `HardPrompt` is a prompt of words that can be saved, loaded and read."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bbt.errors import PromptError
from bbt.files import write_atomically

FILE, FORMAT = "prompt.json", "bbt-hard-prompt/1"


@dataclass(frozen=True)
class HardPrompt:
    """A prompt of words, with what it was tuned for and where it came from."""

    text: str
    """The prompt as readable text; empty for the manual prompt."""
    token_ids: tuple[int, ...]
    """(T,) ids of its tokens; T = 0 is the manual prompt."""
    model: str
    """The name of the model that it was tuned on."""
    template: str
    """The template that it was tuned with."""
    label_words: tuple[str, ...]
    """(K,) label words that it was tuned with, in label order."""
    label_names: tuple[str, ...]
    """(K,) what answers call the labels."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where it came from: task, score, seed, queries, versions and commit."""
    biases: tuple[float, ...] | None = None
    """(K,) class biases that are added to its label scores (none: there are none)."""

    def save(self, folder: Path | str) -> None:
        """Write the prompt into a folder, as `prompt.json`."""
        facts = {"format": FORMAT, **asdict(self)}
        write_atomically(Path(folder) / FILE, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> "HardPrompt":
        """Read the prompt of a run folder.

        Raises:
            PromptError: none there, or not one that bbt wrote.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise PromptError(f"no prompt at {file}: has its run finished? `bbt resume {folder}` goes on.")
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            if facts.pop("format") != FORMAT:
                raise ValueError("another format")
            lists = ("token_ids", "label_words", "label_names", "biases")
            facts |= {key: tuple(facts[key]) for key in lists if facts.get(key) is not None}
            return cls(**facts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PromptError(f"{file} is not a hard prompt of format {FORMAT} ({error!r}).") from error
