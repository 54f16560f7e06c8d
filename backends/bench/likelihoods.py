"""The likelihoods of answers of several tokens are measured here, as label scores are elsewhere."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from backends.bench.plain import PlainScores
from backends.bench.workload import Generations, Workload
from backends.local.encoding import TokenPair, prompt_id
from backends.local.rows import LocalPairs
from bbt.scoring.targets import token_losses
from bbt.tasks import GENERATION_TASKS, Example, GenerationTask
from bbt.tasks.data import bundled_test
from bbt.tasks.examples import read_examples
from bbt.types import Losses, Prompts, Scores

N_ROWS = 32
"""The number of rows, if nothing else is asked for."""
WORDS = (48, 245)
"""The fewest and the most words of made contexts: SQuAD's, but for the shortest and the longest 2 %."""
QUESTION, ANSWER = 10, 3
"""The words of a made question and of a made answer: SQuAD's on average."""


def generations(workload: Workload) -> Generations:
    """Make the workload's generations: of label scores, or of likelihoods where the task's answer is a text."""
    return Likelihoods(workload) if workload.task in GENERATION_TASKS else Generations(workload)


class Likelihoods(Generations):
    """A workload of the likelihoods (n, B) of rows' targets."""

    def _encoded(self) -> LocalPairs:
        task = GENERATION_TASKS[self.workload.task].task(self.workload.task, self.backend.info.kind)
        examples = list(_examples(self.workload, task))
        n_rows = self.workload.n_rows or N_ROWS
        chosen = [examples[i % len(examples)] for i in range(n_rows)]
        return self.backend.encode_pairs(task.rows(chosen, self.workload.n_prompt_tokens))

    @property
    def row_lengths(self) -> list[int]:
        """The number of tokens of each context with its target."""
        return [len(pair.context.ids) + len(pair.target) for pair in self._pairs.pairs]

    @property
    def trunk(self) -> nn.Module:
        """The module that an evaluation calls before the head, once for each micro-batch; of an encoder-decoder it is
        the encoder, and what the decoder does is counted as the head's."""
        if self._decodes:
            return self.backend.model.get_encoder()  # type: ignore[no-any-return]
        forward = self.backend.target_evaluator.forward
        return forward.packed or forward.structure.trunk

    @property
    def head(self) -> nn.Module:
        """The module that makes the logits of all words."""
        return self.backend.target_evaluator.vocabulary

    @property
    def _pairs(self) -> LocalPairs:
        assert isinstance(self.encoded, LocalPairs), "`_encoded` makes them"
        return self.encoded

    @property
    def _decodes(self) -> bool:
        """Whether targets are what a decoder says of a context that an encoder has read."""
        return self.backend.info.kind == "encoder-decoder"

    def plain_loop(self, model: Any) -> PlainScores:
        """The plain loop over a model of transformers, on the same rows."""
        return (PlainAnswers if self._decodes else PlainLikelihoods)(model, self._pairs.pairs)

    def normalised(self, scores: Scores) -> Scores:
        """The scores as they are: likelihoods leave nothing free. The difference is that of a mean over a token."""
        return scores / self._pairs.n_target_tokens

    def scores(self, prompts: Prompts) -> Scores:
        """The log-likelihoods (n, B) of a generation's prompts."""
        return self.backend.target_log_likelihoods(prompts, self._pairs)

    def losses(self, scores: Scores) -> Losses:
        """The losses (n,) of a generation's log-likelihoods (n, B)."""
        return np.asarray(token_losses(scores, self._pairs.n_target_tokens).mean(axis=1))


class PlainTargets(ABC):
    """The plain loop for targets: one forward pass a candidate from Python; every row padded to the longest; the head
    over the whole vocabulary at every position, and the cross-entropy of the targets' tokens."""

    def __init__(self, model: Any, given: list[tuple[int, ...]], said: list[tuple[int, ...]]) -> None:
        """Take the ids of the input, negative where the prompt stands, and what is said at each place of the output;
        -100, which cross_entropy leaves out, where that counts for nothing."""
        self._model, self._words = model, model.get_input_embeddings().weight
        self._ids, self._mask = (x.to(self._words.device) for x in _padded(given, 0))
        self._targets = _padded(said, -100)[0].to(self._words.device)
        self._places = (self._ids < 0).nonzero(as_tuple=True)
        self._which = prompt_id(self._ids[self._places])

    @torch.no_grad()
    def scores(self, prompt: Prompts) -> Scores:
        """The log-likelihoods (B,) of the targets under one prompt (T, H)."""
        embeddings = self._words[self._ids.clamp(min=0)]
        embeddings[self._places] = torch.tensor(prompt, device=embeddings.device).to(embeddings.dtype)[self._which]
        logits = self._logits(inputs_embeds=embeddings, attention_mask=self._mask).float()
        losses = functional.cross_entropy(logits.flatten(0, 1), self._targets.flatten(), reduction="none")
        return np.asarray(-losses.view(self._targets.shape).sum(dim=1).cpu().numpy())

    @abstractmethod
    def _logits(self, **given: Tensor) -> Tensor:
        """The logits (B, N, V) at every place of the output."""


class PlainLikelihoods(PlainTargets):
    """The plain loop for a causal LM, which reads the targets behind their contexts."""

    def __init__(self, model: Any, pairs: list[TokenPair]) -> None:
        given = [(*pair.context.ids, *pair.target[:-1]) for pair in pairs]
        super().__init__(model, given, [(*[-100] * pair.context.read, *pair.target) for pair in pairs])

    def _logits(self, **given: Tensor) -> Tensor:
        return cast(Tensor, self._model(**given).logits)


class PlainAnswers(PlainTargets):
    """The plain loop for what a decoder says; the targets, too, are padded to the longest."""

    def __init__(self, model: Any, pairs: list[TokenPair]) -> None:
        n_given = len(pairs[0].context.decoder) - 1
        said = [(*[-100] * n_given, *pair.target) for pair in pairs]
        super().__init__(model, [pair.context.ids for pair in pairs], said)
        begun = [(*pair.context.decoder, *pair.target[:-1]) for pair in pairs]
        self._begun = _padded(begun, 0)[0].to(self._words.device)

    def _logits(self, **given: Tensor) -> Tensor:
        return cast(Tensor, self._model(**given, decoder_input_ids=self._begun, use_cache=False).logits)


def _padded(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Fill rows up at the right: the ids (B, N), and the mask (B, N) of those that count."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def _examples(workload: Workload, task: GenerationTask) -> Iterator[Example]:
    """Yield rows: of the file, or of as many words as are asked for, or as long as SQuAD's."""
    if workload.data:
        yield from read_examples(workload.data, GENERATION_TASKS[workload.task].columns, ())
        return
    lengths = workload.lengths or np.geomspace(*WORDS, N_ROWS).astype(int).tolist()
    words = [word for example in bundled_test("agnews") for word in example.text.split()]
    first = 0
    for n_words in lengths:
        ends = np.cumsum([first, n_words, QUESTION, ANSWER])
        context, question, answer = (" ".join(words[a:b]) for a, b in pairwise(ends))
        yield Example(context, 0, question if task.template.takes_pair else "", (answer,))
        first = int(ends[-1])
