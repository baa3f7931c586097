"""Base of engines for tests that answer on the real wire, each in its own way.

They listen in a run directory as any engine does, so a real HTTP half finds them.
"""

from pathlib import Path

from qwenapi.settings.table import etc_dir
from workers.config import EngineConfig
from workers.wire.protocol import Accepted, Generate, Hello, Ping, Pong, Started, StepUpdate
from workers.worker.listener import EngineListener
from workers.worker.stub import StubEngine

DEMO = etc_dir() / "models" / "demo"


class WireEngine:
    """Starts each request and answers it with the updates that a subclass says."""

    def __init__(self, run_dir: Path, max_model_len: int = 0) -> None:
        config = EngineConfig(model=str(DEMO), stub=True, max_model_len=max_model_len)
        self._card = StubEngine(config).card
        self._listener = EngineListener(run_dir / "engine-0.sock", self._hello, self)
        self._listener.start()

    def answer(self, generate: Generate) -> StepUpdate:
        """Return what follows the start of a request."""
        raise NotImplementedError

    def close(self) -> None:
        self._listener.close()

    def on_message(self, connection_id: int, message: object) -> None:
        if isinstance(message, Ping):
            self._listener.send(connection_id, Pong(message.nonce))
        elif isinstance(message, Generate):
            wid = message.wid
            self._listener.send(connection_id, Accepted(wid))
            self._listener.send(connection_id, StepUpdate(started=[Started(wid, 0)]))
            self._listener.send(connection_id, self.answer(message))

    def on_closed(self, connection_id: int) -> None:
        pass

    def _hello(self, version: int) -> Hello:
        return Hello(version, 1, 0, "", self._card)
