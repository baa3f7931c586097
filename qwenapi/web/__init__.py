"""The chat page under `/ui/`: a blueprint and the static files beside it.

The page is a client of `/v1` like any other and knows nothing else of this server; nothing here
knows the engine. Which files exist is settled when the application is made: what a caller asks for
is looked up in a table and never becomes a path.
"""

from qwenapi.web.views import blueprint, wants_page

__all__ = ["blueprint", "wants_page"]
