"""The API reference: an OpenAPI 3.1 document of a running server, and a web page to read it."""

from qwenapi.openapi.views import blueprint

__all__ = ["blueprint"]
