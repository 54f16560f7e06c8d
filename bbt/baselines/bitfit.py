"""BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): only the biases are trained."""

from typing import Any

from pydantic import Field

from bbt.baselines.weights import WeightTraining
from bbt.errors import BackendError


class BitFit(WeightTraining):
    """The training of every bias of the model, the head's too."""

    learning_rate: float = Field(1e-3, gt=0)
    """The optimizer's step size."""
    steps: int = Field(50, gt=0)
    """The number of gradient steps."""

    def thaw(self, model: Any) -> None:
        """Mark the biases as trained.

        Raises:
            BackendError: the model has none.
        """
        biases = [weight for name, weight in model.named_parameters() if name.endswith("bias")]
        if not biases:
            raise BackendError(f"{type(model).__name__} has no biases for bitfit to train; take lora or adapter.")
        for bias in biases:
            bias.requires_grad_(True)
