"""`transformers serve` with continuous batching, over a checkpoint, measured from outside.

Knows its command line and what it is missing on this machine. Refuses to know our engine. Its
requests travel through HTTP and a tokenizer; those of an engine in this process do not.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import requests

from qwenapi.commands.bench.load import BenchResult, Load, run

NEEDED = ("transformers.cli.serve", "fastapi", "uvicorn", "openai", "pydantic")
COMMAND = (sys.executable, "-c", "from transformers.cli.transformers import main; main()")
START_SECONDS = 180
STOP_SECONDS = 20


def missing() -> list[str]:
    """Return the modules it needs and this machine lacks."""
    return [name for name in NEEDED if not _exists(name)]


def measure(
    directory: Path,
    device: str,
    streams: Sequence[int],
    prompt_tokens: int,
    max_tokens: int,
    command: Sequence[str] = COMMAND,
) -> Iterator[BenchResult]:
    """Yield what each number of concurrent streams gave, all of a level asked for at once."""
    with _serving(directory, device, command) as url:
        load = Load(
            url,
            model=str(directory),
            endpoint="chat",
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            ignore_eos=False,  # it refuses the field, and the model knows no eos
        )
        run(replace(load, max_tokens=4), 2, 2, first_seed=10**9)
        for level in streams:
            yield run(load, level, level, first_seed=level * 10**6)


@contextmanager
def _serving(directory: Path, device: str, command: Sequence[str]) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*command, "serve", str(directory), "--continuous-batching", "--device", device]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    log = directory / "transformers-serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            words,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(process)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    raise RuntimeError(f"transformers serve did not start: {log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen) -> None:
    """End the server; it may hang on its own threads."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
