"""Full model tuning trains every weight, in the manual template (LM-BFF, arXiv 2012.15723, section 4)."""

from typing import Any

from pydantic import Field

from bbt.baselines.weights import WeightTraining


class ModelTuning(WeightTraining):
    """The training of all weights. The learning rate is the middle one of LM-BFF's grid (table C.1)."""

    learning_rate: float = Field(2e-5, gt=0)
    """The optimizer's step size."""
    steps: int = Field(50, gt=0)
    """The number of gradient steps."""

    def thaw(self, model: Any) -> None:
        """Mark all weights as trained."""
        model.requires_grad_(True)
