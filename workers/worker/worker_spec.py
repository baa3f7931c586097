"""WorkerSpec: an engine process's number, name, socket and shared-memory file."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WorkerSpec:
    """What a supervisor tells an engine process of its place among the others."""

    index: int
    run_dir: Path
    shared_memory_path: Path

    @property
    def name(self) -> str:
        return f"engine-{self.index}"

    @property
    def socket_path(self) -> Path:
        return self.run_dir / f"{self.name}.sock"
