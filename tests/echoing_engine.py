"""An engine that says again what was said to it last, on the real wire, for tests.

For clients that send no `seed`, by which the stub is told what to say, and for answers that end by
themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from tests.running_server import RunningServer
from tests.wire_engine import DEMO, WireEngine
from workers.wire.protocol import Chunk, Finished, Generate, StepUpdate


class EchoingEngine(WireEngine):
    """Answers a chat with the text of its last turn, as one piece."""

    def __init__(self, run_dir: Path, max_model_len: int) -> None:
        run_dir.mkdir()
        self._tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
        super().__init__(run_dir, max_model_len)

    def answer(self, generate: Generate) -> StepUpdate:
        wid, ids = generate.wid, self._last_turn(generate.prompt_ids)
        finished = Finished(wid, len(generate.prompt_ids), len(ids))
        return StepUpdate(chunks=[Chunk(wid, 0, 0, ids, "stop")], finished=[finished])

    def _last_turn(self, prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
        prompt = self._tokenizer.decode(prompt_ids, skip_special_tokens=False)
        *_, turn, _answer = prompt.split("<|im_start|>")
        text = turn.partition("\n")[2].partition("<|im_end|>")[0]
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)


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
