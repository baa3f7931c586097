"""Anthropic's interface: messages, whole or streamed, and the counting of their tokens."""

from qwenapi.api.anthropic.views import blueprint

__all__ = ["blueprint"]
