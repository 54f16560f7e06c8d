"""The plain loop is what our speed is measured against: what one writes with `transformers` alone.

One forward pass a candidate from Python; every row padded to the longest; the head over the whole vocabulary at
every position. Attention is what `transformers` takes by itself, so that only our own work is measured.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from backends.local.encoder_decoder import decoder_inputs
from backends.local.encoding import TokenRow, prompt_id
from bbt.types import Prompts, Scores


class PlainScores(Protocol):
    """A loop that scores candidates one by one with `transformers` alone."""

    def scores(self, prompt: Prompts) -> Scores:
        """The scores (B, ...) of one prompt (T, H)."""


class PlainLoop:
    """A loop that scores candidates one by one on rows that are already tokenised; `label_ids` (K,) are the label
    words'."""

    def __init__(self, model: Any, rows: Sequence[TokenRow], label_ids: Sequence[int]) -> None:
        self._model = model
        self._words = model.get_input_embeddings().weight
        width = max(len(row.ids) for row in rows)
        device = self._words.device
        padded = [[*row.ids, *[0] * (width - len(row.ids))] for row in rows]
        self._ids = torch.tensor(padded, device=device)
        self._mask = torch.tensor([[int(i < len(row.ids)) for i in range(width)] for row in rows], device=device)
        self._read = torch.tensor([row.read for row in rows], device=device)
        self._said: dict[str, Tensor] = {}
        if rows[0].decoder:
            self._said["decoder_input_ids"], self._read = decoder_inputs(rows, device)
        self._label_ids = torch.tensor(list(label_ids), device=device)
        self._places = (self._ids < 0).nonzero(as_tuple=True)
        self._which = prompt_id(self._ids[self._places])

    @torch.no_grad()
    def scores(self, prompt: Prompts) -> Scores:
        """The scores (B, K) of one prompt (T, H), or of one deep prompt (L, T, H) that is added layer by layer."""
        vectors = torch.tensor(prompt, device=self._words.device).to(self._words.dtype)
        first = vectors if vectors.ndim == 2 else vectors[0]
        embeddings = self._words[self._ids.clamp(min=0)]
        embeddings[self._places] = first[self._which]
        handles = [] if vectors.ndim == 2 else self._add_before_layers(vectors)
        try:
            logits = self._model(inputs_embeds=embeddings, attention_mask=self._mask, **self._said).logits
        finally:
            for handle in handles:
                handle.remove()
        chosen = logits[torch.arange(len(logits)), self._read][:, self._label_ids]
        return np.asarray(chosen.float().cpu().numpy())

    def _add_before_layers(self, vectors: Tensor) -> list[Any]:
        """Add vectors[i] (T, H) to the hidden states at the prompt's places before layer i >= 1, by hooks that are
        returned."""
        layers = layers_of(self._model)
        return [
            layer.register_forward_pre_hook(self._adding(vectors[i]), with_kwargs=True)
            for i, layer in enumerate(layers)
            if i
        ]

    def _adding(self, offsets: Tensor) -> Any:
        def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden[self._places] += offsets[self._which]

        return add


def layers_of(model: Any) -> nn.ModuleList:
    """The model's list of layers."""
    n_layers = model.config.num_hidden_layers
    lists = (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers)
    return next(lists)
