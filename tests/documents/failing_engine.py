"""An engine that takes every request and fails it, on the real wire, for tests.

It listens in a run directory as any engine does, so a real HTTP half finds it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwenapi.settings.table import etc_dir
from tests.running_server import RunningServer
from workers.config import EngineConfig
from workers.wire.protocol import (
    Accepted,
    Chunk,
    Failed,
    Generate,
    Hello,
    Ping,
    Pong,
    Started,
    StepUpdate,
)
from workers.worker.listener import EngineListener
from workers.worker.stub import StubEngine


class FailingEngine:
    """Starts each request, gives as many tokens of its prompt as it was told to, and then says in
    the same breath that it failed.
    """

    def __init__(self, run_dir: Path, num_tokens: int = 0, *, ends: bool = False) -> None:
        """With `ends`, the tokens are the whole answer, and only then does it fail."""
        self._num_tokens = num_tokens
        self._ends = ends
        model = str(etc_dir() / "models" / "demo")
        self._card = StubEngine(EngineConfig(model=model, stub=True)).card
        self._listener = EngineListener(run_dir / "engine-0.sock", self._hello, self)
        self._listener.start()

    def close(self) -> None:
        self._listener.close()

    def on_message(self, connection_id: int, message: object) -> None:
        if isinstance(message, Ping):
            self._listener.send(connection_id, Pong(message.nonce))
        elif isinstance(message, Generate):
            wid = message.wid
            self._listener.send(connection_id, Accepted(wid))
            self._listener.send(connection_id, StepUpdate(started=[Started(wid, 0)]))
            given = message.prompt_ids[: self._num_tokens]
            chunks = [Chunk(wid, 0, 0, given, "length" if self._ends else None)] if given else []
            failed = [Failed(wid, "engine_error")]
            self._listener.send(connection_id, StepUpdate(chunks=chunks, failed=failed))

    def on_closed(self, connection_id: int) -> None:
        pass

    def _hello(self, version: int) -> Hello:
        return Hello(version, 1, 0, "", self._card)


@contextmanager
def http_half(run_dir: Path, engines: Path, profile: str) -> Iterator[RunningServer]:
    """Run an HTTP half that looks for its engines in a folder; it may never be ready."""
    flags = ("--model-run-dir", str(engines), "--profile", profile)
    server = RunningServer(run_dir, *flags, command="http")
    try:
        yield server
        assert server.stop() == 0
    finally:
        server.close()
