"""WorkerSpec: an engine process's number, name, sockets and shared-memory file."""

from dataclasses import dataclass
from pathlib import Path

from workers.worker.tcp_door import DoorSpec


@dataclass(frozen=True)
class WorkerSpec:
    """What a supervisor tells an engine process of its place among the others; with a `door`, it is
    also for other machines, which know the one it runs on by the name of `node`.
    """

    index: int
    run_dir: Path
    shared_memory_path: Path
    door: DoorSpec | None = None
    node: str = ""

    @property
    def name(self) -> str:
        return f"engine-{self.index}"

    @property
    def socket_path(self) -> Path:
        return self.run_dir / f"{self.name}.sock"
