"""A transformers model of which only what is read is computed.

The trunk is the model without its head; a hook hands the head one position a row, and the head's decoder is cut
to the label words' rows. Both work on any architecture that names its trunk (`base_model`) and its decoder
(`get_output_embeddings`), so no model needs code of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.local.precision import FullPrecisionHead
from bbt.errors import BackendError


class Trunk:
    """Frozen model, read position by read position.

    Raises:
        BackendError: the model has no decoder over its vocabulary.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._decoder = model.get_output_embeddings()
        if not isinstance(self._decoder, nn.Linear):
            raise BackendError(f"{type(model).__name__} has no linear decoder over its vocabulary to score with.")
        self._read: Tensor | None = None
        self._head = FullPrecisionHead(model)
        model.base_model.register_forward_hook(self._keep_read_position)

    @torch.inference_mode()
    def logits(self, embeddings: Tensor, lengths: Tensor, read: Tensor) -> Tensor:
        """`differentiable_logits` without gradients."""
        return self.differentiable_logits(embeddings, lengths, read)

    def differentiable_logits(
        self, tokens: Tensor, lengths: Tensor, read: Tensor, past: Any = None, past_length: int = 0
    ) -> Tensor:
        """Logits (S, K) of the label words at `read` (S,) for S sequences of token ids (S, N) or embeddings
        (S, N, H), of which the first `lengths` (S,) positions count; `past` holds keys and values of what stands
        left of them."""
        self._read = read
        try:
            mask = _padding_mask(lengths, tokens.shape[1], past_length)
            inputs = {"inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens}
            output = self._model(**inputs, attention_mask=mask, past_key_values=past)
        finally:
            self._read = None
        return cast(Tensor, output.logits[:, 0])

    @contextmanager
    def scoring(self, token_ids: Tensor) -> Iterator[None]:
        """Inside, the head knows these K tokens only, and all of it is in fp32: K rows cost nothing, while bf16 would
        round a logit of 100, as causal LMs have them, to 0.5."""
        weight, bias = self._decoder.weight[token_ids].float(), self._decoder.bias
        bias = None if bias is None else bias[token_ids].float()

        def score(hidden: Tensor) -> Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                return functional.linear(hidden.float(), weight, bias)

        self._decoder.forward = score  # on the instance, where it hides the class's
        try:
            with self._head.active():
                yield
        finally:
            del self._decoder.forward

    @contextmanager
    def after_layernorm(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Inside, the embeddings are changed after their LayerNorm."""

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return change(output)

        handle = embedding_layernorm(self._model).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _keep_read_position(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._read is not None:
            hidden = output.last_hidden_state
            rows = torch.arange(len(hidden), device=hidden.device)
            output["last_hidden_state"] = hidden[rows, self._read][:, None]
        return output


def _padding_mask(lengths: Tensor, width: int, past_length: int) -> Tensor | None:
    """(S, past + N) of ones where a token stands; None where nothing is padded."""
    if bool((lengths == width).all()):
        return None
    places = torch.arange(past_length + width, device=lengths.device)
    return (places[None] < past_length + lengths[:, None]).long()


def embedding_layernorm(model: Any) -> nn.Module:
    """The LayerNorm after the word embeddings of a BERT-like model.

    Raises:
        BackendError: there is none.
    """
    embeddings = getattr(model.base_model, "embeddings", None)
    layernorm = getattr(embeddings, "LayerNorm", None)
    if not isinstance(layernorm, nn.Module):
        raise BackendError(
            f"{type(model).__name__} has no LayerNorm after its embeddings; use prompt.placement: embedding."
        )
    return layernorm


def word_embeddings(model: Any) -> Tensor:
    """(vocabulary, H) what enters the model for each token: Gemma's embeddings are scaled first."""
    module = model.get_input_embeddings()
    if type(module) is nn.Embedding:
        return module.weight
    with torch.no_grad():
        return cast(Tensor, module(torch.arange(len(module.weight), device=module.weight.device)))
