"""Initial prompts p0 are random vectors or tokens, tokens by their ids, a text, the label words, answers of train rows,
solved train rows, or a saved prompt."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bbt.backend import Backend
from bbt.draws import stable_choice, stable_normal
from bbt.errors import ConfigError, PromptError
from bbt.prompts.soft import SoftPrompt
from bbt.settings import InitialPromptConfig
from bbt.tasks import Example, GenerationTask, Task
from bbt.tasks.data import alternating
from bbt.types import Prompts


def initial_prompts(
    config: InitialPromptConfig, backend: Backend, task: Task, train: Sequence[Example], seed: int
) -> Prompts:
    """Make the m initial prompts (m, T, H), where m = `n_screened` if they are drawn at random, and else 1; `train` are
    the rows that they may hold.

    Raises:
        ConfigError: `init: text` without a text, text without one token, ids beyond the vocabulary, or `init: answers`
            where answers are labels.
        PromptError: a saved prompt of another shape.
    """
    n, n_tokens, info = config.n_screened, config.n_prompt_tokens, backend.info
    if config.init == "vocabulary":
        return backend.embed_ids(random_ids(backend, n * n_tokens, seed)).reshape(n, n_tokens, -1)
    if config.init == "random":
        numbers = stable_normal(seed, n * n_tokens * info.hidden_size) * info.embedding_std
        return numbers.reshape(n, n_tokens, -1).astype(np.float32)
    if config.init == "ids":
        return _by_ids(config.first_id, n_tokens, backend)
    if config.init == "text":
        if not config.text:
            raise ConfigError("prompt.init: text needs prompt.text.")
        return _repeated(backend.embed_text(config.text), n_tokens)
    if config.init == "label_words":
        return _repeated(backend.embed_text(" ".join(task.label_words)), n_tokens)
    if config.init == "answers":
        if not isinstance(task, GenerationTask):
            raise ConfigError(f"prompt.init: answers: those of {task.name} are labels; take label_words.")
        return _of_lines([task.answered(row) for row in train], n_tokens, backend)
    if config.init == "demonstrations":
        solved = [task.solved(row) for row in alternating(train, seed)]
        return _of_lines(solved, n_tokens, backend, last=True)  # cut is what stands farthest from the text
    return saved_prompt(Path(config.init), backend, n_tokens)


def n_screened(config: InitialPromptConfig) -> int:
    """The train queries that screening `initial_prompts` costs: one for each prompt, where there are several."""
    drawn = config.n_screened if config.init in ("vocabulary", "random") else 1
    return drawn if drawn > 1 else 0


def random_ids(backend: Backend, n: int, seed: int) -> list[int]:
    """Draw n ordinary tokens, with replacement."""
    ids = backend.ordinary_ids()
    return [ids[i] for i in stable_choice(seed, len(ids), n)]


def _by_ids(first: int, n: int, backend: Backend) -> Prompts:
    """The embeddings (1, n, H) of n tokens whose ids stand in a row, from `first` on."""
    size = backend.info.vocab_size
    if first + n > size:
        raise ConfigError(
            f"prompt.init: ids asks for the tokens {first} to {first + n - 1}, {backend.info.name} has {size}: lower "
            "prompt.first_id or prompt.n_prompt_tokens."
        )
    return backend.embed_ids(range(first, first + n))


def _of_lines(lines: Sequence[str], n: int, backend: Backend, last: bool = False) -> Prompts:
    """The first or `last` n tokens (1, n, H) of lines. Only lines that are needed are embedded, since there may be a
    whole data set of them."""
    n_lines = 1
    while True:
        some = lines[-n_lines:] if last else lines[:n_lines]
        tokens = backend.embed_text("".join(f"{line}\n" for line in some))
        if tokens.shape[1] >= n or n_lines >= len(lines):
            return _repeated(tokens, n, last)
        n_lines *= 2


def _repeated(tokens: Prompts, n: int, last: bool = False) -> Prompts:
    """Cut tokens (1, t, H) to the first or `last` n of them, or repeat them to as many."""
    if not tokens.shape[1]:
        raise ConfigError("the initial text has no tokens.")
    return tokens[:, (np.arange(-n, 0) if last else np.arange(n)) % tokens.shape[1]]


def saved_prompt(path: Path, backend: Backend, n_prompt_tokens: int) -> Prompts:
    """Read a prompt (1, T, H) that was tuned on this model before, on whatever task.

    Raises:
        ConfigError: no such path; PromptError: another model's, another shape, or no word embeddings.
    """
    if not path.exists():
        raise ConfigError(
            f"prompt {str(path)!r} is neither vocabulary, random, ids, text, label_words, answers or demonstrations "
            "nor the path of a saved prompt."
        )
    prompt, expected = SoftPrompt.load(path), (n_prompt_tokens, backend.info.hidden_size)
    prompt.check_model(backend.info.name, backend.info.fingerprint)
    if prompt.anchor is not None:
        raise PromptError(f"{path} was tuned with prompt.placement: layernorm; its vectors are no word embeddings.")
    if prompt.embeddings.shape != expected:
        raise PromptError(
            f"{path} has shape {prompt.embeddings.shape}, the run needs (T, H) = {expected}. Set "
            "prompt.n_prompt_tokens; a run that kept the manual prompt (T = 0) needs selection.baselines: false."
        )
    return prompt.batch
