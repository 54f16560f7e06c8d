"""P-Tuning v2 (Liu et al. 2022, arXiv 2110.07602), alias prefix tuning (Li & Liang 2021, arXiv 2101.00190), by PEFT:
trained keys and values stand left of every row in every layer; in an encoder-decoder, of what its decoder says, as
PEFT has them."""

import inspect
from typing import Any

from pydantic import Field

from bbt.backend import Trainable
from bbt.baselines.peft_training import PeftTraining
from bbt.errors import BackendError


class PrefixTuning(PeftTraining):
    """P-Tuning v2, a prefix in every layer."""

    learning_rate: float = Field(5e-3, gt=0)
    """The optimizer's step size."""
    steps: int = Field(100, gt=0)
    """The number of gradient steps."""
    n_prefix_tokens: int = Field(20, ge=1)
    """The tokens of the prefix in every layer (fewer than 20 do for simple classification: P-Tuning v2, section
    3.3)."""
    projection: bool = False
    """Whether the prefix comes out of a reparameterising network (Li & Liang, section 4.3), which is left behind after
    training."""
    projection_size: int = Field(512, ge=1)
    """The width of that network."""

    def peft_config(self, model: Any) -> Any:
        """PEFT's config for prefixes, for a model that takes keys and values from outside."""
        from peft import PrefixTuningConfig

        if "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
            raise BackendError(f"{type(model).__name__} takes no keys and values, so no prefix; take prompt-tuning.")
        writes = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
        return PrefixTuningConfig(
            task_type=writes if model.can_generate() else "FEATURE_EXTRACTION",
            num_virtual_tokens=self.n_prefix_tokens,
            prefix_projection=self.projection,
            encoder_hidden_size=self.projection_size,
        )

    def attach(self, model: Trainable, peft_model: Any) -> None:
        """Let PEFT make the keys and values of the prefix."""
        model.put_prefix(self.n_prefix_tokens, peft_model.get_prompt)
