"""An engine that takes every request and fails it, on the real wire, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running_server import RunningServer
from tests.wire_engine import WireEngine
from workers.wire.protocol import Chunk, Failed, Generate, StepUpdate


class FailingEngine(WireEngine):
    """Starts each request, gives as many tokens of its prompt as it was told to, and then says in
    the same breath that it failed.
    """

    def __init__(self, run_dir: Path, num_tokens: int = 0, *, ends: bool = False) -> None:
        """With `ends`, the tokens are the whole answer, and only then does it fail."""
        self._num_tokens = num_tokens
        self._ends = ends
        super().__init__(run_dir)

    def answer(self, generate: Generate) -> StepUpdate:
        wid, given = generate.wid, generate.prompt_ids[: self._num_tokens]
        chunks = [Chunk(wid, 0, 0, given, "length" if self._ends else None)] if given else []
        return StepUpdate(chunks=chunks, failed=[Failed(wid, "engine_error")])


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
