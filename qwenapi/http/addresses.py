"""CleanAddresses: spellings of an address that mean the same, made one before the routing.

Doubled slashes count once, and one at the end does not count, as nginx and careless base URLs have
it. Nothing is redirected: a client might lose its body on the way.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

_SLASHES = re.compile("/{2,}")
# Here a slash at the end is an address of its own, which relative links build on.
FOLDERS = ("/ui/", "/docs/")


class CleanAddresses:
    """WSGI middleware around an application."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["PATH_INFO"] = clean(environ.get("PATH_INFO", ""))
        return self._app(environ, start_response)


def clean(path: str) -> str:
    """Return the one spelling of a path."""
    path = _SLASHES.sub("/", path)
    return path if path.startswith(FOLDERS) else path.rstrip("/") or "/"
