"""What passes between a supervisor and an engine process: where it belongs, and how it fares.

The pipe between them carries one JSON object per message (never a pickle): progress, ready, fatal.
"""

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from workers import parent_death


@dataclass(frozen=True)
class WorkerSpec:
    """Where an engine process belongs: its number, run directory and the model half's page."""

    index: int
    run_dir: Path
    shared_memory_path: Path

    @property
    def name(self) -> str:
        return f"engine-{self.index}"

    @property
    def socket_path(self) -> Path:
        return self.run_dir / f"{self.name}.sock"


class Report:
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
