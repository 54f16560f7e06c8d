"""LoRA (Hu et al. 2022, arXiv 2106.09685), by PEFT: low-rank changes of attention weights."""

from typing import Any

from pydantic import Field

from bbt.baselines.peft_training import PeftTraining


class Lora(PeftTraining):
    """LoRA, of the size of the paper's RoBERTa-base runs (table 9: r = alpha = 8)."""

    learning_rate: float = Field(1e-3, gt=0)
    """The optimizer's step size."""
    steps: int = Field(50, gt=0)
    """The number of gradient steps."""
    rank: int = Field(8, ge=1)
    """r, the rank of the change of each weight."""
    alpha: int = Field(8, ge=1)
    """The change is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """The share of the inputs that is dropped while the pairs are trained."""
    target_modules: tuple[str, ...] | None = None
    """Names of the modules that are changed (none: PEFT's choice for the architecture, the query and value projections,
    as in the paper)."""

    def peft_config(self, model: Any) -> Any:
        """PEFT's config for low-rank pairs beside the target modules."""
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules) if self.target_modules else None,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
