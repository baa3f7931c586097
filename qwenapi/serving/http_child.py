"""HttpChild: the HTTP server, a gunicorn arbiter, as its supervisor sees it.

The supervisor owns the socket, which outlives every arbiter, so a restart refuses nobody: callers
wait in its backlog. What the server needs travels as one JSON line over the pipe that also ties its
life to the supervisor's; over a second pipe it reports, one JSON line each: `beat`, `up` of each
worker, `idle` of one that drains, `failed`.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from qwenapi.serving.listener import HttpListener
from qwenapi.serving.probe import Probe
from qwenapi.serving.startup_config import StartupConfig

# The arbiter looks at its workers once a second.
SILENCE_SECONDS = 15.0
START_SECONDS = 60.0
FIRST_PROBE_SECONDS, PROBE_SECONDS = 0.2, 5.0


class HttpChild:
    """Implements workers.supervisor.supervised_process.Child."""

    name = "http"

    def __init__(
        self,
        startup_config: StartupConfig,
        run_dir: Path,
        model_run_dir: Path,
        listener: HttpListener,
        predecessor: "HttpChild | None" = None,
    ) -> None:
        """A successor starts beside a server that answers on the same socket, so its own report is
        taken for its readiness; and it must find an engine if that one does.
        """
        self.failure: str | None = None
        self.startup_config = startup_config
        self._run_dir = run_dir
        self._model_run_dir = model_run_dir
        self._listener = listener
        self._predecessor = predecessor
        self._process: subprocess.Popen[bytes] | None = None
        self._parent_pipe = self._report = -1
        self._heard = b""
        self._last_beat = 0.0
        self._workers_up: set[int] = set()
        self._workers_idle: set[int] = set()
        self._is_discouraged = False
        self._was_ready = False
        self._probe = Probe(listener, FIRST_PROBE_SECONDS)

    def start(self) -> None:
        self._close_pipes()
        self.failure, self._heard, self._was_ready = None, b"", False
        self._workers_up.clear()
        self._workers_idle.clear()
        self._last_beat = time.monotonic() + START_SECONDS
        self._probe = Probe(self._listener, FIRST_PROBE_SECONDS)
        self._process = None
        with ExitStack() as theirs:
            their_end, self._parent_pipe = os.pipe()
            theirs.callback(os.close, their_end)
            self._report, their_report = os.pipe()
            theirs.callback(os.close, their_report)
            os.set_blocking(self._report, False)
            descriptors = (self._listener.sock.fileno(), their_end, their_report)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qwenapi.serving.server", *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        facts = {
            "run_dir": str(self._run_dir),
            "model_run_dir": str(self._model_run_dir),
            "needs_engine": self._predecessor is not None and self._predecessor.finds_engine,
        }
        line = orjson.dumps(
            facts | {"startup_config": orjson.Fragment(self.startup_config.to_json())}
        )
        try:
            os.write(self._parent_pipe, line + b"\n")
        except BrokenPipeError:
            pass  # it has ended already, as poll() will tell

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the arbiter runs."""
        if self._process is None:
            return None
        self._hear()
        code = self._process.poll()
        if code is not None:
            # Workers outlive an arbiter that was killed; the socket would go on feeding them.
            self.kill()
            self._probe.stop()
            self._close_pipes()
        elif self._was_ready:
            self._probe.tick()
        return code

    def is_ready(self) -> bool:
        """Return whether a request would be served now; once true, it is not asked again."""
        if not self._was_ready and len(self._workers_up) >= self._num_workers:
            if self._predecessor is None:
                self._probe.tick()
            self._was_ready = self._predecessor is not None or self._probe.is_ready
            if self._was_ready:
                self._predecessor = None  # when it starts again, it will be alone
                self._probe = Probe(self._listener, PROBE_SECONDS)
                self._probe.is_ready = True
        return self._was_ready

    @property
    def finds_engine(self) -> bool:
        """Return whether an engine answered it when it was asked last."""
        return self._probe.is_ready

    def has_served(self) -> bool:
        return self._was_ready

    def hang(self) -> str | None:
        """Return why the arbiter must be taken for hung, or None; it watches its workers itself,
        and a probe that is not answered may only say that many call.
        """
        silence = time.monotonic() - self._last_beat
        if self._is_stopped():
            return "the process is stopped"
        if silence > SILENCE_SECONDS:
            return f"no sign of life for {silence:.1f} s"
        return None

    def discourage(self) -> None:
        """Let readiness be refused from now on: gunicorn leaves this signal to its workers."""
        self._is_discouraged = True
        self._signal_all(signal.SIGWINCH)

    def is_idle(self) -> bool:
        """Return whether every worker has said that nothing is left to do."""
        return len(self._workers_idle) >= self._num_workers

    def terminate(self) -> None:
        self._probe.stop()
        if self._process is not None:
            self._process.terminate()

    def dump(self) -> None:
        pass

    def kill(self) -> None:
        """Kill the arbiter and its workers: they share a session of their own."""
        self._signal_all(signal.SIGKILL)

    @property
    def _num_workers(self) -> int:
        return self.startup_config.settings.api_server_count

    def _signal_all(self, number: int) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                pass

    def _is_stopped(self) -> bool:
        """Return whether a signal such as SIGSTOP holds the arbiter."""
        if self._process is None or self._process.returncode is not None:
            return False
        try:
            options = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._process.pid, options) is not None
        except ChildProcessError:
            return False

    def _hear(self) -> None:
        if self._report < 0:
            return
        try:
            while piece := os.read(self._report, 65536):
                self._heard += piece
        except (BlockingIOError, OSError):
            pass
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._on_event(orjson.loads(line))

    def _on_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "beat":
                self._last_beat = time.monotonic()
            case "up":
                self._workers_up.add(event["pid"])
                if self._is_discouraged:
                    self._signal_all(signal.SIGWINCH)  # it came after the others were told
            case "idle":
                self._workers_idle.add(event["pid"])
            case "failed":
                self.failure = event["message"]

    def _close_pipes(self) -> None:
        for fd in (self._parent_pipe, self._report):
            if fd >= 0:
                os.close(fd)
        self._parent_pipe = self._report = -1
