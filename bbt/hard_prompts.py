"""`HardPrompt`: a prompt of words that can be saved, loaded and read, and the classifier it makes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bbt.backend import Backend
from bbt.errors import PromptError
from bbt.objective import Ledger, Scorer
from bbt.records import write_atomically
from bbt.tasks import Example, Task, Template
from bbt.types import RowScores

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
            facts |= {key: tuple(facts[key]) for key in ("token_ids", "label_words", "label_names")}
            return cls(**facts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PromptError(f"{file} is not a hard prompt of format {FORMAT} ({error!r}).") from error


@dataclass(frozen=True)
class HardPromptClassifier:
    """A hard prompt on its model."""

    backend: Backend
    task: Task
    prompt: HardPrompt

    @classmethod
    def loaded(cls, prompt: HardPrompt, backend: Backend) -> "HardPromptClassifier":
        """A saved prompt with the template and label words it was tuned with."""
        task = Task("saved prompt", Template(prompt.template), prompt.label_names, prompt.label_words)
        return cls(backend, task, prompt)

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """(B, K) scores under this prompt."""
        ids = np.array([self.prompt.token_ids], dtype=np.int64)
        return np.asarray(Scorer(self.backend, self.task, examples, ledger).scores(ids)[0])

    def save(self, folder: Path) -> None:
        """As `prompt.json`."""
        self.prompt.save(folder)
