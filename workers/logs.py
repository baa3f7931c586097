"""Log lines of supervisors and engines on stderr, as console text or JSON."""

import json
import logging


def configure(name: str, level: str = "info", shape: str = "console") -> None:
    """Send this process's lines to stderr; `shape` is console or json."""
    handler = logging.StreamHandler()
    plain = logging.Formatter(f"{name}: %(message)s")
    handler.setFormatter(JsonFormatter(name) if shape == "json" else plain)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the keys of the HTTP half's lines."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "process": self._process,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
