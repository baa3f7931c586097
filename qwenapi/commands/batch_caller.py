"""BatchCaller: sends one request of a batch until there is an answer to keep.

Waits where a server says when to come again, and where it cannot be reached at all. Knows the
server's HTTP; refuses to know files and threads.
"""

import http.client
import json
import socket
import threading
import time
from typing import Any

from qwenapi.batches.line import BatchLine, BatchResponse, render_line
from qwenapi.commands.check_service import Server

BUSY = (429, 503)
# A request whose connection breaks may be what breaks it; a server not reached is restarting.
NUM_BROKEN = 3
PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 60.0
UNREACHABLE_SECONDS = 300.0
# Raised before anything was sent.
UNREACHED = (ConnectionRefusedError, FileNotFoundError, socket.gaierror)
MAX_MESSAGE_CHARS = 500


class BatchStopped(Exception):
    """Nothing that is sent now could be answered; what was not is sent by the next run."""


class BatchCaller:
    """Asks one server; `stopping` cuts its waiting short with BatchStopped."""

    def __init__(self, server: Server, stopping: threading.Event) -> None:
        self._server = server
        self._stopping = stopping

    def answer(self, line: BatchLine) -> tuple[bytes, bool]:
        """Return the line of output for a request, and whether the request failed."""
        for num_broken in range(1, NUM_BROKEN + 1):
            try:
                response, error = self._ask(line)
                return render_line(line.custom_id, response, error), error is not None
            except (OSError, http.client.HTTPException) as broken:
                message = f"{type(broken).__name__}: {broken}"
            self._wait(PAUSE_SECONDS * num_broken)
        error = {"code": "connection_error", "message": message}
        return render_line(line.custom_id, None, error), True

    def _ask(self, line: BatchLine) -> tuple[BatchResponse, dict[str, str] | None]:
        last_reached = time.monotonic()
        while True:
            try:
                with self._server.ask("POST", line.url, line.body) as answer:
                    raw = answer.read()
            except UNREACHED as error:
                if time.monotonic() - last_reached > UNREACHABLE_SECONDS:
                    raise BatchStopped(f"{self._server.address} is not reached: {error}") from error
                self._wait(PAUSE_SECONDS)
                continue
            if answer.status == 401:
                raise BatchStopped(f"the key is refused: {_message(raw)}")
            if (wait := _asked_to_wait(answer)) is None:
                return _kept(answer, raw)
            last_reached = time.monotonic()
            self._wait(wait)

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise BatchStopped("interrupted")


def _asked_to_wait(answer: http.client.HTTPResponse) -> float | None:
    """Return the seconds after which a busy server wants to be asked again, None if it does not."""
    after = answer.headers.get("Retry-After")
    is_for_good = answer.headers.get("x-should-retry") == "false"
    if answer.status not in BUSY or after is None or is_for_good:
        return None
    try:
        return min(max(float(after), PAUSE_SECONDS), MAX_PAUSE_SECONDS)
    except ValueError:  # a date; whoever comes sooner is told again
        return MAX_PAUSE_SECONDS


def _kept(
    answer: http.client.HTTPResponse, raw: bytes
) -> tuple[BatchResponse, dict[str, str] | None]:
    request_id = answer.headers.get("X-Request-Id", "")
    body: Any = None
    error: dict[str, str] | None = None
    try:
        body = json.loads(raw)
    except ValueError:
        error = {"code": "not_json", "message": f"status {answer.status}: {_message(raw)}"}
    else:
        if not 200 <= answer.status < 300:
            error = {"code": str(answer.status), "message": _message(raw)}
    return BatchResponse(answer.status, request_id, body), error


def _message(raw: bytes) -> str:
    """Return what an error's body says, as OpenAI's clients find it, else its beginning."""
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:MAX_MESSAGE_CHARS].decode(errors="replace")
