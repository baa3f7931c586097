"""Quarantine: requests that were found to crash engines, refused for a while.

Knows fingerprints, never content: a keyed hash of the prompt and of what was asked for, the seed
left out, as a caller that names none gets another each time. Each HTTP process has its own.
"""

import hashlib
import secrets
import time

import msgspec

from workers.wire.protocol import Generate

QUARANTINE_SECONDS = 600.0


class Quarantine:
    """The fingerprints of guilty requests, each until its time is over."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._until: dict[bytes, float] = {}

    def add(self, request: Generate) -> None:
        self._until[self._fingerprint(request)] = time.monotonic() + QUARANTINE_SECONDS

    def __contains__(self, request: Generate) -> bool:
        now = time.monotonic()
        self._until = {print_: until for print_, until in self._until.items() if until > now}
        return bool(self._until) and self._fingerprint(request) in self._until

    def _fingerprint(self, request: Generate) -> bytes:
        params = msgspec.structs.replace(request.params, seed=0)
        asked = msgspec.msgpack.encode((request.prompt_ids, params, request.choices))
        return hashlib.blake2b(asked, key=self._key, digest_size=16).digest()
