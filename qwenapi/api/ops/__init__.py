"""What operators and their scripts ask: is it alive, is it ready."""

from qwenapi.api.ops.views import blueprint

__all__ = ["blueprint"]
