"""What every method is given, and what it gives back."""

from bbt.experiment.experiment import Experiment, Trained

__all__ = ["Experiment", "Trained"]
