"""SupervisorPipe: an engine process tells its supervisor of progress, readiness or failure.

One JSON object per message, never a pickle.
"""

from multiprocessing.connection import Connection
from typing import Any

import msgspec

from workers import parent_death


class SupervisorPipe:
    """The engine's end of the pipe to its supervisor."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def end_with_supervisor(self) -> None:
        parent_death.hold(self._pipe.fileno())

    def progress(self, what: str, fraction: float) -> None:
        self._send(event="progress", what=what, fraction=fraction)

    def ready(self) -> None:
        self._send(event="ready")

    def fatal(self, message: str) -> None:
        self._send(event="fatal", message=message)

    def _send(self, **event: Any) -> None:
        self._pipe.send_bytes(msgspec.json.encode(event))
