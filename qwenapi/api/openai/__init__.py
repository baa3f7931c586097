"""OpenAI's interface: chat completions, completions, embeddings, models, and vLLM's beside them."""

from qwenapi.api.openai import pooling_views, token_views
from qwenapi.api.openai.views import blueprint

pooling_views.register(blueprint)
token_views.register(blueprint)

__all__ = ["blueprint"]
