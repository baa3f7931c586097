"""The reference: every operation of a running server in OpenAPI 3.1, and a page to read it."""

from qwenapi.openapi.views import blueprint

__all__ = ["blueprint"]
