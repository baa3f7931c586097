"""Log lines of the HTTP half: console or JSON, one for each request, never content.

A line says where an exception came from and not its words, which may hold a caller's text. What
else a caller sent (little) cannot end a line, colour a terminal, or exceed MAX_LINE_BYTES.
"""

import logging
import re
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import structlog

from qwenapi.settings.table import Settings
from workers.errors import WorkerError

MAX_LINE_BYTES = 8192
# Whose words are of the system's or our own making.
SPEAKING_ERRORS = (OSError, WorkerError)
# Control characters, line ends, marks that turn the direction of text, and halves of characters.
_UNFIT = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_requests = structlog.get_logger("qwenapi.requests")


def configure(settings: Settings) -> None:
    """Send the lines of qwenapi and its libraries to stderr in the shape the settings ask for."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=False),
        structlog.processors.ExceptionRenderer(origin_of),
    ]
    render = _to_json if settings.log_format == "json" else _to_console()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            lambda logger, name, event: fitted(event, render),
        ],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    gunicorn = logging.getLogger("gunicorn.error")  # it has a handler and a shape of its own
    gunicorn.handlers.clear()
    gunicorn.propagate = True
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


class RequestLog:
    """What is known of a request at its end: views add to it, `write` is called once."""

    def __init__(self, is_on: bool, request_id: str, method: str, route: str) -> None:
        self._is_on = is_on
        self.arrival = time.monotonic()
        # `key_id` names the caller's key, where keys are asked for.
        self.facts: dict[str, Any] = {
            "request_id": request_id,
            "key_id": None,
            "code": None,
            "method": method,
            "route": route,
        }

    @property
    def elapsed(self) -> float:
        """Return the seconds since the request began."""
        return time.monotonic() - self.arrival

    def add(self, **facts: Any) -> None:
        self.facts.update(facts)

    def write(self, status: int) -> None:
        self.add(status=status, seconds=round(self.elapsed, 4))
        if self._is_on:
            _requests.info("request", **self.facts)


def origin_of(exc_info: Any) -> str:
    """Return the frames and the kind of an exception and of those that brought it about."""
    error: BaseException | None = exc_info[1]
    parts: list[str] = []
    while error is not None:
        frames = "".join(traceback.format_tb(error.__traceback__))
        words = f": {escaped(str(error))}" if isinstance(error, SPEAKING_ERRORS) else ""
        parts.append(f"{frames}{type(error).__module__}.{type(error).__qualname__}{words}")
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)
    return "\nbrought about by\n".join(parts)


def fitted(event: Mapping[str, Any], render: Callable[[dict[str, Any]], str]) -> str:
    """Return the line of an event, the middle of its longest texts cut out until it fits."""
    plain = {key: _plain(key, value) for key, value in event.items()}
    while len((line := render(dict(plain))).encode()) > MAX_LINE_BYTES:
        longest = max(plain, key=lambda key: len(str(plain[key])))
        kept = len(plain[longest]) * 3 // 8
        plain[longest] = f"{plain[longest][:kept]}…{plain[longest][-kept:]}"
    return line


def escaped(text: str) -> str:
    """Return a text that cannot leave its line, with what is not shown written as its escape."""
    return _UNFIT.sub(lambda found: ascii(found[0])[1:-1], text)


def _plain(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    # Only the frames of an exception, which are our own, have lines.
    return text if key == "exception" else escaped(text)


def _to_json(event: dict[str, Any]) -> str:
    return orjson.dumps(event).decode()


def _to_console() -> Callable[[dict[str, Any]], str]:
    """Return what writes a line for people: it says nothing of what is empty."""
    renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)

    def render(event: dict[str, Any]) -> str:
        told = {key: value for key, value in event.items() if value is not None and value != ""}
        return str(renderer(None, "", told))

    return render
