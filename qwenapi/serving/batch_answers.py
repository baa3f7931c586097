"""How an HTTP process answers the lines of batches: as requests of its own application's."""

from flask import Flask

from qwenapi.batches.job import Answer, Asking
from qwenapi.batches.line import BatchLine
from qwenapi.batches.runner import BatchRunner
from qwenapi.batches.store import BatchStore
from qwenapi.engines.client import EngineClient
from qwenapi.request_context.inner_request import InnerAnswer, ask_inside
from qwenapi.settings.table import Settings

BUSY = (429, 503, 529)
USUAL_RETRY_SECONDS = 1.0
# What a line has besides its body: an id, an address, a method.
AROUND_BODY_BYTES = 16 * 1024


def new_runner(
    app: Flask, store: BatchStore, engine: EngineClient, settings: Settings
) -> BatchRunner:
    """Return the runner of this process."""

    def ask(key_id: str, line: BatchLine) -> Answer:
        answer = ask_inside(app, key_id, line.url, line.body)
        request_id = answer.headers["X-Request-Id"]
        return Answer(answer.status, request_id, answer.body, _retry_after(answer))

    def may_begin() -> bool:
        """Return whether nobody waits for an engine: what is in no hurry does not push in."""
        is_free = not any(row.values["waiting"] for row in engine.engine_rows())
        return is_free and engine.is_ready

    def is_stopping() -> bool:
        return engine.is_discouraged or engine.is_refusing

    max_line_bytes = settings.max_body_bytes + AROUND_BODY_BYTES
    asking = Asking(ask, may_begin, is_stopping, settings.batches_concurrency, max_line_bytes)
    return BatchRunner(store, asking)


def _retry_after(answer: InnerAnswer) -> float | None:
    """Return when a line is to be asked again that found no room or no engine, None for others."""
    if answer.status not in BUSY or answer.headers.get("x-should-retry") == "false":
        return None
    return float(answer.headers.get("Retry-After", USUAL_RETRY_SECONDS))
