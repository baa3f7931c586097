"""OpenAI's interface: chat completions, completions, models."""

from qwenapi.api.openai.views import blueprint

__all__ = ["blueprint"]
