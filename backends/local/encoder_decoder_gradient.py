"""The gradient side of an encoder-decoder: the prompt stands in the encoder's input, and a prefix in the decoder."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from backends.local.encoder_decoder import encoder_decoder_head
from backends.local.encoding import TokenRow
from backends.local.gradient import TrainableModel, places
from backends.local.head import Head


class TrainableEncoderDecoder(TrainableModel):
    """The trainable copy of an encoder-decoder (see `bbt.backend.Trainable`)."""

    def _make_head(self) -> Head:
        return encoder_decoder_head(self.model)

    def _states(self, rows: Sequence[TokenRow], answers: Sequence[tuple[int, ...]], prompt: Tensor | None) -> Tensor:
        device = self.model.device
        inputs, sizes = self._inputs([torch.tensor(row.ids, device=device) for row in rows], prompt)
        mask = (torch.arange(int(sizes.max()), device=device) < sizes[:, None]).long()
        encoded = self.model.get_encoder()(**inputs, attention_mask=mask).last_hidden_state
        # Filled up at the right, which no token left of it sees.
        said = [torch.tensor((*row.decoder, *a[:-1]), device=device) for row, a in zip(rows, answers, strict=True)]
        seen = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}
        cache = self._prefix.cache(len(rows))
        output = self.model.get_decoder()(input_ids=pad_sequence(said, batch_first=True), past_key_values=cache, **seen)
        reads = [len(row.decoder) - 1 for row in rows]
        return cast(Tensor, output.last_hidden_state[places(reads, answers, device)])
