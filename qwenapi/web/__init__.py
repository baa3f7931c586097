"""The chat page and the status page under `/ui/`: a blueprint and the static files beside it.

The one is a client of `/v1` like any other, the other of `/ui/status.json`, which api/ops answers;
nothing here knows the engine. Which files exist is settled when the application is made: what a
caller asks for is looked up in a table and never becomes a path.
"""

from qwenapi.web.views import blueprint, wants_page

__all__ = ["blueprint", "wants_page"]
