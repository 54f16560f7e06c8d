"""The space of deep prompts (BBTv2): a prompt space for every layer, searched as one."""

from dataclasses import dataclass

import numpy as np

from bbt.spaces.soft import PromptSpace
from bbt.types import DeepPrompts, Latents, Prompts


@dataclass(frozen=True)
class DeepSpace:
    """The space of all deep prompts (p0_i + A_i z_i) of L layers, of which z = (z_1, ..., z_L) is one point."""

    layers: tuple[PromptSpace, ...]
    """(L,) the prompt space of each layer, from the lowest up."""

    @property
    def intrinsic_dim(self) -> int:
        """The dimension L * d of z, all layers together."""
        return sum(layer.intrinsic_dim for layer in self.layers)

    @property
    def n_prompt_tokens(self) -> int:
        """The number of prompt tokens T."""
        return self.layers[0].n_prompt_tokens

    @property
    def p0(self) -> DeepPrompts:
        """The untuned prompt (1, L, T, H)."""
        return np.stack([layer.p0 for layer in self.layers], axis=1)

    @property
    def no_prompt(self) -> Prompts:
        """The manual prompt (1, 0, H), which is the template's words alone."""
        return self.layers[0].no_prompt

    def prompts(self, latents: Latents) -> DeepPrompts:
        """The deep prompts (n, L, T, H) of latents (n, L * d). A layer at which the candidates agree is computed once,
        so that it agrees to the last bit and a backend can see what it need not compute again."""
        prompts = np.empty((len(latents), *self.p0.shape[1:]), np.float32)
        for i, (layer, part) in enumerate(zip(self.layers, np.split(latents, len(self.layers), axis=1), strict=True)):
            prompts[:, i] = layer.prompts(part[:1] if (part == part[0]).all() else part)
        return prompts
