"""The gradient side of an encoder-decoder: the prompt stands in the encoder's input, and a prefix in the decoder."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from backends.local.encoder_decoder import decoder_inputs, encoder_decoder_head
from backends.local.encoding import TokenRow
from backends.local.gradient import TrainableModel
from backends.local.head import Head


class TrainableEncoderDecoder(TrainableModel):
    """The trainable copy of an encoder-decoder (see `bbt.backend.Trainable`)."""

    def _make_head(self) -> Head:
        return encoder_decoder_head(self.model)

    def _states(self, inputs: dict[str, Tensor], sizes: Tensor, rows: Sequence[TokenRow]) -> Tensor:
        """The decoder's hidden states (b, H) that are read."""
        (given,) = inputs.values()
        mask = (torch.arange(given.shape[1], device=given.device) < sizes[:, None]).long()
        encoded = self.model.get_encoder()(**inputs, attention_mask=mask).last_hidden_state
        ids, last = decoder_inputs(rows, given.device)
        seen = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}
        output = self.model.get_decoder()(input_ids=ids, past_key_values=self._cache(len(rows)), **seen)
        return cast(Tensor, output.last_hidden_state[torch.arange(len(rows), device=ids.device), last])
