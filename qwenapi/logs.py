"""Log lines of the HTTP half: console or JSON, one line for each request, never content."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import orjson
import structlog

from qwenapi.settings import Settings

MAX_LINE_BYTES = 8192

_requests = structlog.get_logger("qwenapi.requests")


def configure(settings: Settings) -> None:
    """Send the lines of qwenapi and its libraries to stderr in the shape the settings ask for."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=False),
        structlog.processors.format_exc_info,
    ]
    if settings.log_format == "json":
        renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(_to_json)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


class RequestLog:
    """What the one line of a request says; views add to it, `write` is called once, whatever the
    ending.
    """

    def __init__(self, is_on: bool, request_id: str, method: str, route: str) -> None:
        self._is_on = is_on
        self._started = time.monotonic()
        self._facts: dict[str, Any] = {"request_id": request_id, "method": method, "route": route}

    @property
    def elapsed(self) -> float:
        """Return the seconds since the request began."""
        return time.monotonic() - self._started

    def add(self, **facts: Any) -> None:
        self._facts.update(facts)

    def write(self, status: int) -> None:
        if self._is_on:
            _requests.info("request", status=status, seconds=round(self.elapsed, 4), **self._facts)


def _to_json(event: Mapping[str, Any], **_: Any) -> str:
    return orjson.dumps(event, default=str)[:MAX_LINE_BYTES].decode(errors="replace")
