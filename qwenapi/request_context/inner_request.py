"""A request that this process asks of itself: through the whole application, for a key's holder.

It has no connection and no secret: the key is named by its id, in a place of the WSGI environment
that no header of a caller's can reach. Less urgent than whatever the holder sends.
"""

import json
from typing import Any, NamedTuple

from flask import Flask
from msgspec.structs import replace
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder, run_wsgi_app

from qwenapi.keys import Key, KeyRing

KEY_ID = "qwenapi.key_id"
# Added to the key's priority, where a lower one is more urgent.
LESS_URGENT = 1000


class InnerAnswer(NamedTuple):
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes


def ask_inside(app: Flask, key_id: str, address: str, body: dict[str, Any]) -> InnerAnswer:
    """Return what the application answers to a POST of JSON."""
    data = json.dumps(body).encode()  # orjson has no words for half a surrogate pair or 2**64
    builder = EnvironBuilder(
        path=address, method="POST", data=data, content_type="application/json"
    )
    environ = builder.get_environ() | {KEY_ID: key_id}
    pieces, status, headers = run_wsgi_app(app, environ, buffered=True)
    return InnerAnswer(int(status.split()[0]), headers, b"".join(pieces))


def inner_key(keys: KeyRing, key_id: str) -> Key | None:
    """Return the key that an inner request is for, None once it is no longer in force."""
    key = keys.in_force(key_id)
    return key and replace(key, priority=min(key.priority + LESS_URGENT, 2**31 - 1))
