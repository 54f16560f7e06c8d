"""Full model tuning: every weight is trained, in the manual template (LM-BFF, arXiv 2012.15723, section 4)."""

from typing import Any

from pydantic import Field

from bbt.baselines.weights import WeightTraining


class ModelTuning(WeightTraining):
    """The learning rate is the middle one of LM-BFF's grid (table C.1)."""

    learning_rate: float = Field(2e-5, gt=0)
    steps: int = Field(50, gt=0)

    def thaw(self, model: Any) -> None:
        """All of it."""
        model.requires_grad_(True)
