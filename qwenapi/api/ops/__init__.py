"""What operators and their scripts ask: is it alive, is it ready, how much does it do."""

from qwenapi.api.ops.views import blueprint

__all__ = ["blueprint"]
