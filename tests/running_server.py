"""A real `qwenapi` process tree for a test: start it, talk to it, look inside, stop it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import requests

from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.shared_memory import SharedMemory
from workers.wire.shared_memory_files import shared_memory_path

READY = re.compile(r"^ready: (\S+)", re.MULTILINE)


class RunningServer:
    """`qwenapi COMMAND FLAGS` with a run directory of its own and any free port."""

    def __init__(
        self,
        run_dir: Path,
        *flags: str,
        command: str = "serve",
        environ: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ):
        """`prefix` is put before the command line, as a program that execs it."""
        self.run_dir = run_dir
        command_line = [*prefix, sys.executable, "-m", "qwenapi", command]
        mine: list[str] = []
        if command != "model":
            mine += ["--state-dir", str(run_dir / "state")]
            mine += [] if "--port" in flags else ["--port", "0"]
            mine += [] if "--profile" in flags else ["--profile", "openai"]
        self.process = subprocess.Popen(
            [*command_line, "--run-dir", str(run_dir), *mine, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | (environ or {}),
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def wait_until_ready(self, timeout: float = 120) -> "RunningServer":
        wait_for(
            lambda: READY.search(self.log) or self.process.poll() is not None,
            timeout,
            lambda: self.log,
        )
        assert READY.search(self.log), self.log
        return self

    @property
    def url(self) -> str:
        found = READY.search(self.log)
        assert found, self.log
        return found[1]

    def connect(self) -> socket.socket:
        """Return a connection to it, by TCP or by its Unix socket."""
        kind, _, place = self.url.partition(":")
        if kind == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(60)
            sock.connect(place)
            return sock
        host, _, port = place.removeprefix("//").rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout=60)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Return status and body of one request on a connection of its own, TCP or Unix."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.connect()
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=60, **options)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=60)

    def chat(self, content: str, **fields: Any) -> requests.Response:
        return self.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields}
        )

    def text(self, content: str, **fields: Any) -> str:
        answer = self.chat(content, **fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def stream(self, content: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the events of a streamed chat; the last must be [DONE]."""
        events = sse_events(self.chat(content, stream=True, **fields).content)
        assert events[-1] == "[DONE]", events[-3:]
        return events[:-1]

    def row(self, engine: int = 0) -> dict[str, int]:
        memory = SharedMemory.open(shared_memory_path(self.run_dir, ENGINE_LAYOUT), ENGINE_LAYOUT)
        try:
            return memory.read(engine)
        finally:
            memory.close()

    def wait_until_idle(self, timeout: float = 30) -> None:
        """Wait until the engine holds nothing for anybody."""

        def is_idle() -> bool:
            row = self.row()
            return (
                row["running"] == row["waiting"] == 0 and row["free_blocks"] == row["total_blocks"]
            )

        wait_for(is_idle, timeout, lambda: f"{self.row()}")

    def http_workers(self) -> list[psutil.Process]:
        workers = []
        for child in psutil.Process(self.process.pid).children():
            try:
                if "qwenapi.serving.server" in " ".join(child.cmdline()):
                    workers += child.children()
            except psutil.NoSuchProcess:
                pass  # it has just ended
        return workers

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, timeout: float = 30) -> int:
        """Send SIGTERM and return the exit code; after the timeout kill what is left and fail."""
        processes = self.tree() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            for process in processes:
                process.kill()
            self.process.kill()
            raise AssertionError(f"did not stop within {timeout} s\n{self.log}") from None
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert not alive, f"left running: {alive}"
        self.close()
        return code

    def close(self) -> None:
        """Take leave of the process; what has not ended by now is killed."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.append(line)


def sse_events(raw: bytes) -> list[Any]:
    """Return the payloads of an event stream: parsed JSON, or the text that is none."""
    assert raw.endswith(b"\n\n"), raw[-80:]
    events: list[Any] = []
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        assert block.startswith("data: ") and "\n" not in block, block
        payload = block.removeprefix("data: ")
        events.append(payload if payload == "[DONE]" else json.loads(payload))
    return events


def content_of(events: list[dict[str, Any]], index: int = 0) -> str:
    choices = [
        choice for event in events for choice in event["choices"] if choice["index"] == index
    ]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def wait_for(condition: Any, timeout: float = 30, explain: Any = lambda: "") -> Any:
    """Return the condition's first true value, looking every 10 ms."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {explain()}"
        time.sleep(0.01)
    return value


def quickest(action: Callable[[], Any], attempts: int = 3) -> tuple[float, Any]:
    """Return the least time of several attempts, in seconds, and the last result.

    What a server can do is its quickest answer; the others measure who else uses the machine.
    """
    times = []
    for _ in range(attempts):
        started = time.monotonic()
        result = action()
        times.append(time.monotonic() - started)
    return min(times), result
