"""An experiment is what every method is given; what it gives back is trained and tested."""

from bbt.experiment.experiment import Experiment, Trained

__all__ = ["Experiment", "Trained"]
