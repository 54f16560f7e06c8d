"""Prompts that can be saved and loaded, soft and hard, with where they came from."""

from bbt.prompts.hard import HardPrompt
from bbt.prompts.soft import SoftPrompt

__all__ = ["HardPrompt", "SoftPrompt"]
