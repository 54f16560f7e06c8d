"""One forward pass over a micro-batch: packed where the model can, sequences of one length apart where it cannot."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.local.attention import KeysAndValues, Packed
from backends.local.batching import MicroBatch
from backends.local.layers import Layers
from backends.local.packed import PackedTrunk
from backends.local.packing import Pack, pack
from backends.local.trunk import Trunk, word_embeddings

logger = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""How far packed scores may be from plain ones, in standard deviations of the scores."""


class Forward:
    """A frozen model; `words` (vocabulary, H) are its word embeddings.

    `packed` is None if the model scores two short rows otherwise packed than apart, or refuses to.
    """

    def __init__(self, model: Any) -> None:
        self.words = word_embeddings(model)
        self.layers = Layers(model)
        self.trunk = Trunk(model)
        self.packed: PackedTrunk | None = None
        try:
            packed = PackedTrunk(model, self.layers)
            self.packed = packed if self._agrees(packed) else None
        except Exception as error:  # whatever an unknown architecture makes of arguments that it does not know
            logger.info("%s takes no packed rows: %s", type(model).__name__, error)

    @contextmanager
    def scoring(self, label_ids: Tensor) -> Iterator[None]:
        """Inside, the model is set up for `logits` of these K label words."""
        with ExitStack() as stack:
            stack.enter_context(self.trunk.scoring(label_ids))
            if self.packed:
                stack.enter_context(self.packed.active())
            yield

    def logits(self, embeddings: Tensor, tokens: Pack, prefix: KeysAndValues | None = None) -> Tensor:
        """Embeddings (P, H) -> (S, K); keys and values of a `prefix` only where the model is packed."""
        read = self.tensor(tokens.read)
        if self.packed:
            return self.packed.logits(embeddings, self.tensor(tokens.positions), Packed(tokens.groups, read, prefix))
        return self._apart(embeddings, tokens)

    def keys_and_values(self, embeddings: Tensor, tokens: Pack) -> KeysAndValues:
        """Each attention's keys and values of prefixes of one length, one a candidate."""
        assert self.packed, "only packed rows share a prefix"
        return self.packed.keys_and_values(embeddings, self.tensor(tokens.positions), tokens.groups)

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """A copy on the device, floats as float32: PyTorch warns of arrays that are read-only."""
        dtype = np.float32 if array.dtype.kind == "f" else array.dtype
        return torch.from_numpy(np.array(array, dtype=dtype)).to(self.words.device, non_blocking=True)

    def _apart(self, embeddings: Tensor, tokens: Pack) -> Tensor:
        (group,) = tokens.groups
        inputs = embeddings.view(-1, group.length, embeddings.shape[1])
        lengths = torch.full(inputs.shape[:1], group.length, device=inputs.device)
        return self.trunk.logits(inputs, lengths, self.tensor(tokens.read % group.length))

    def _agrees(self, packed: PackedTrunk) -> bool:
        """Rows of five and of three tokens score packed as they score apart."""
        lengths, starts = [5, 3], np.array([0, 5])
        embeddings = self.words[self.tensor(np.arange(8) % len(self.words))]
        together = pack(MicroBatch(0, 1, (0, 1)), starts, lengths, [4, 2])
        alone = [pack(MicroBatch(0, 1, (row,)), starts, lengths, [4, 2]) for row in (0, 1)]
        with self.trunk.scoring(torch.arange(min(32, len(self.words)), device=embeddings.device)):
            parts = zip(torch.split(embeddings, lengths), alone, strict=True)
            expected = torch.cat([self._apart(part, tokens) for part, tokens in parts])
            with packed.active():
                arguments = Packed(together.groups, self.tensor(together.read))
                found = packed.logits(embeddings, self.tensor(together.positions), arguments)
        tolerance = TOLERANCES[embeddings.dtype] * expected.std()
        return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance)
