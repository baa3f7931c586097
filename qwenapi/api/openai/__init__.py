"""OpenAI's interface: chat completions, completions, models, and what vLLM has beside them."""

from qwenapi.api.openai import token_views
from qwenapi.api.openai.views import blueprint

token_views.register(blueprint)

__all__ = ["blueprint"]
