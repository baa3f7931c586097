"""OpenAI's Responses interface: answers as items, whole or streamed, kept for later turns."""

from qwenapi.api.responses import conversation_views  # noqa: F401 (its addresses are blueprint's)
from qwenapi.api.responses.views import blueprint

__all__ = ["blueprint"]
