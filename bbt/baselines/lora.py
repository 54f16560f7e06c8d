"""LoRA (Hu et al. 2022, arXiv 2106.09685), by PEFT: low-rank changes of attention weights."""

from typing import Any

from pydantic import Field

from bbt.baselines.peft_training import PeftTraining


class Lora(PeftTraining):
    """`rank` and `alpha` as in the paper's RoBERTa-base runs (table 9: r = alpha = 8); `target_modules`: none takes
    PEFT's choice for the architecture, the query and value projections, as in the paper."""

    learning_rate: float = Field(1e-3, gt=0)
    steps: int = Field(50, gt=0)
    rank: int = Field(8, ge=1)
    alpha: int = Field(8, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None

    def peft_config(self, model: Any) -> Any:
        """Low-rank pairs beside the target modules."""
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules) if self.target_modules else None,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
