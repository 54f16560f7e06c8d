"""Models behind OpenAI-compatible APIs."""

from backends.openai.text import TextBackend
from backends.openai.vllm import VLLMBackend

__all__ = ["TextBackend", "VLLMBackend"]
