"""An engine that says again what was said to it last, on the real wire, for tests.

For clients that send no `seed`, by which the stub is told what to say, and for answers that end by
themselves. It listens in a run directory as any engine does, so a real HTTP half finds it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from qwenapi.settings.table import etc_dir
from tests.running_server import RunningServer
from workers.config import EngineConfig
from workers.wire.protocol import (
    Accepted,
    Chunk,
    Finished,
    Generate,
    Hello,
    Ping,
    Pong,
    Started,
    StepUpdate,
)
from workers.worker.listener import EngineListener
from workers.worker.stub import StubEngine

DEMO = etc_dir() / "models" / "demo"


class EchoingEngine:
    """Answers a chat with the text of its last turn, as one piece."""

    def __init__(self, run_dir: Path, max_model_len: int) -> None:
        run_dir.mkdir()
        config = EngineConfig(model=str(DEMO), stub=True, max_model_len=max_model_len)
        self._card = StubEngine(config).card
        self._tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
        self._listener = EngineListener(run_dir / "engine-0.sock", self._hello, self)
        self._listener.start()

    def close(self) -> None:
        self._listener.close()

    def on_message(self, connection_id: int, message: object) -> None:
        if isinstance(message, Ping):
            self._listener.send(connection_id, Pong(message.nonce))
        elif isinstance(message, Generate):
            wid, ids = message.wid, self._last_turn(message.prompt_ids)
            chunk = Chunk(wid, 0, 0, ids, "stop")
            finished = Finished(wid, len(message.prompt_ids), len(ids))
            self._listener.send(connection_id, Accepted(wid))
            update = StepUpdate(started=[Started(wid, 0)], chunks=[chunk], finished=[finished])
            self._listener.send(connection_id, update)

    def on_closed(self, connection_id: int) -> None:
        pass

    def _last_turn(self, prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
        prompt = self._tokenizer.decode(prompt_ids, skip_special_tokens=False)
        *_, turn, _answer = prompt.split("<|im_start|>")
        text = turn.partition("\n")[2].partition("<|im_end|>")[0]
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _hello(self, version: int) -> Hello:
        return Hello(version, 1, 0, "", self._card)


@contextmanager
def echoing_server(folder: Path, max_model_len: int = 65_536) -> Iterator[RunningServer]:
    """Run an HTTP half on such an engine, in an empty folder."""
    engine = EchoingEngine(folder / "engines", max_model_len)
    flags = ("--model-run-dir", str(folder / "engines"))
    server = RunningServer(folder / "run", *flags, command="http")
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()
        engine.close()
