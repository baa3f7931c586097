"""ClusterLauncher: this process's end of the launcher's process, which alone speaks to Ray.

Never waits, but for a survey. A process that has ended took its engines along; the next start of
an engine starts another.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

from qwenapi.cluster.job import job_settings
from qwenapi.settings.table import Settings
from workers.errors import ConfigError

SURVEY_SECONDS = 120.0
ENVIRON = {"RAY_COLOR_PREFIX": "0", "RAY_USAGE_STATS_ENABLED": "0"}
INSTALL = "--cluster needs Ray, on every machine: pip install 'qwenapi[ray]'"


class ClusterLauncher:
    """Starts and signals engines in the cluster that the settings name."""

    def __init__(self, settings: Settings, mode: str = "place", **facts: Any) -> None:
        require_ray()
        self._facts = {
            "mode": mode,
            "address": settings.cluster,
            "name": settings.model_name,
            "device": settings.device,
            "num_engines": settings.data_parallel_size,
            "num_ranks": settings.tensor_parallel_size,
            "may_cross": settings.allow_cross_node_tp,
            "threads": settings.threads,
            "log_level": settings.log_level,
            "log_format": settings.log_format,
            **facts,
        }
        self.failure: str | None = None
        self.is_connected = False
        self.num_starts = 0  # of the process
        self._process: subprocess.Popen[bytes] | None = None
        self._events_fd = -1
        self._heard, self._unsent = b"", b""
        self._events: dict[int, deque[dict[str, Any]]] = defaultdict(deque)
        self._num_lives = 0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Return the process's exit code, or None while it runs."""
        self._hear()
        return None if self._process is None else self._process.poll()

    def ensure(self) -> None:
        """Start the process, if it does not run."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self.failure, self.is_connected = None, False
        self._heard, self._unsent = b"", b""
        self._events.clear()
        self._events_fd, theirs = os.pipe()
        os.set_blocking(self._events_fd, False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qwenapi.cluster.launcher_process", str(theirs)],
                stdin=subprocess.PIPE,
                pass_fds=(theirs,),
                start_new_session=True,
                env=os.environ | ENVIRON,
            )
        finally:
            os.close(theirs)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self.num_starts += 1
        self._send(self._facts)

    def start(self, engine: int, job: Mapping[str, Any]) -> int:
        """Start an engine; return the number of this life of it, which its events carry."""
        self.ensure()
        self._num_lives += 1
        self._send({"do": "start", "engine": engine, "life": self._num_lives, "job": job})
        return self._num_lives

    def signal(self, engine: int, name: str) -> None:
        """`terminate`, `dump` or `kill` an engine."""
        self._send({"do": name, "engine": engine})

    def events(self, engine: int) -> list[dict[str, Any]]:
        """Return what has been heard of an engine since the last call."""
        self._hear()
        heard = list(self._events[engine])
        self._events[engine].clear()
        return heard

    def wait(self, seconds: float) -> None:
        """Wait for the end of the process, and hear it meanwhile; raise TimeoutError."""
        deadline = time.monotonic() + seconds
        while self.exit_code is None:
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process, and with it the engines."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            os.close(self._events_fd)
            self._process = None

    def _send(self, line: Mapping[str, Any]) -> None:
        if self._process is not None:
            self._unsent += json.dumps(line).encode() + b"\n"
            self._flush(self._process)

    def _flush(self, process: subprocess.Popen[bytes]) -> None:
        """Write what the pipe takes now; the rest follows with the next look at the process."""
        assert process.stdin is not None
        try:
            while self._unsent:
                written = os.write(process.stdin.fileno(), self._unsent)
                self._unsent = self._unsent[written:]
        except BlockingIOError:
            pass  # it connects, or is busy
        except BrokenPipeError:
            self._unsent = b""  # it has ended, as exit_code tells

    def _hear(self) -> None:
        if self._process is None:
            return
        self._flush(self._process)
        try:
            while piece := os.read(self._events_fd, 1 << 16):
                self._heard += piece
        except BlockingIOError:
            pass
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._on_event(json.loads(line))

    def _on_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "connected":
                self.is_connected = True
            case "failed":
                self.failure = event["why"]
            case _:
                self._events[event.get("engine", -1)].append(event)


def require_ray() -> None:
    """Raise ConfigError with the line that installs it, where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(INSTALL)


def survey(settings: Settings) -> dict[str, Any]:
    """Return what the cluster's nodes have, and what was found on each; raise ConfigError."""
    launcher = ClusterLauncher(settings, "survey", job=job_settings(settings))
    launcher.ensure()
    try:
        launcher.wait(SURVEY_SECONDS)
        found = launcher.events(-1)
        if not found:
            raise ConfigError(launcher.failure or "the cluster was not looked at: see above")
        return found[0]
    except TimeoutError:
        raise ConfigError(f"{settings.cluster}: no answer within {SURVEY_SECONDS:g} s") from None
    finally:
        launcher.close()
