"""`HardPrompt`: a prompt of words that can be saved, loaded and read, and the classifier it makes."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bbt.errors import PromptError
from bbt.files import write_atomically

FILE, FORMAT = "prompt.json", "bbt-hard-prompt/1"


@dataclass(frozen=True)
class HardPrompt:
    """`text` and its tokens (T of them; none: the manual prompt), with the template and label words it was tuned
    with, the model, and the rest of where it came from."""

    text: str
    token_ids: tuple[int, ...]
    model: str
    template: str
    label_words: tuple[str, ...]
    label_names: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    biases: tuple[float, ...] | None = None

    def save(self, folder: Path) -> None:
        """As `prompt.json`."""
        facts = {"format": FORMAT, **asdict(self)}
        write_atomically(folder / FILE, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "HardPrompt":
        """From a run folder.

        Raises:
            PromptError: none there, or not one that bbt wrote.
        """
        file = folder / FILE
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
