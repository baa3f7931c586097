"""ClusterEngine: an engine on a node of a cluster, as its supervisor sees it.

An engine is judged by what it says itself: its host there, and its own connection. One that Ray has
no place for is starting, however long that takes.
"""

import logging
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from qwenapi.cluster.job import job_settings
from qwenapi.cluster.launcher import ClusterLauncher
from qwenapi.cluster.slot_feed import SlotFeed
from qwenapi.cluster.wire_tls import wire_tls
from qwenapi.settings.table import Settings
from workers.wire.connection import SILENCE_SECONDS
from workers.wire.endpoint import SECRET_BYTES, Endpoint, endpoint_path
from workers.wire.shared_memory import SharedMemory

log = logging.getLogger(__name__)

LOST = -signal.SIGKILL
# An engine whose port is closed has ended; its host may still say how.
LAST_WORDS_SECONDS = 1.0


class ClusterEngine:
    """One engine on some node; a `supervised_process.Child`."""

    def __init__(
        self,
        engine: int,
        settings: Settings,
        run_dir: Path,
        memory: SharedMemory,
        launcher: ClusterLauncher,
        on_progress: Callable[[str, str, float], None] = lambda name, what, fraction: None,
    ) -> None:
        self.name = f"engine-{engine}"
        self.failure: str | None = None
        self.pid: int | None = None
        self._engine = engine
        self._job = job_settings(settings)
        self._tls = wire_tls(settings)
        self._path = endpoint_path(run_dir, engine)
        self._memory = memory
        self._launcher = launcher
        self._on_progress = on_progress
        self._feed: SlotFeed | None = None
        self._hang: str | None = None
        self._silent_beat_ns = 0
        self._exit: int | None = None
        self._refused_at: float | None = None
        self._has_served, self._num_tokens = False, 0
        self._life, self._node = 0, "no node"
        self._num_launcher_starts = 0

    def start(self) -> None:
        """Ask for a place and a process there; returns before there is either."""
        self._forget()
        slot = self._memory.values(self._engine)
        secret = secrets.token_bytes(SECRET_BYTES).hex()
        self._num_tokens = self._read()["generated_tokens"]
        self._life = self._launcher.start(
            self._engine, {**self._job, "slot": slot, "secret": secret}
        )
        self._num_launcher_starts = self._launcher.num_starts

    def poll(self) -> int | None:
        """Return the exit code, a signal's where the engine is lost, or None while it runs."""
        for event in self._launcher.events(self._engine):
            if event["life"] == self._life:
                self._on_event(event)
        if self._exit is None:
            self._exit = self._launchers_exit()
        if self._exit is None and self._is_refused_for_long():
            self._exit, self.failure = LOST, f"{self.name} on {self._node}: its port is closed"
            self._launcher.signal(self._engine, "kill")
        num_tokens = self._read()["generated_tokens"]
        self._has_served = self._has_served or num_tokens > self._num_tokens
        self._num_tokens = num_tokens
        if self._exit is not None:
            self._end()
        return self._exit

    def is_ready(self) -> bool:
        """Return whether it has said so, and its connection from here has brought its slot."""
        return self._feed is not None and self._feed.has_slot

    def has_served(self) -> bool:
        return self._has_served

    def hang(self) -> str | None:
        """Return why it must be taken for hung, or None: as its host finds it, or out of reach."""
        if self._hang is not None or self._feed is None or not self._feed.has_slot:
            return self._hang
        row = self._read()
        age = time.monotonic_ns() - row["beat_ns"]
        if age <= max(row["step_timeout_ns"], SILENCE_SECONDS * 1e9):
            return None
        # Twice in a row, as after a sleep of the whole machine everybody is found silent.
        known_ns, self._silent_beat_ns = self._silent_beat_ns, row["beat_ns"]
        if known_ns != row["beat_ns"]:
            return None
        return f"no sign of life from {self._node} for {age / 1e9:.1f} s"

    def discourage(self) -> None:
        """Do nothing: the HTTP half says who is ready."""

    def is_idle(self) -> bool:
        """Return True: it works for the HTTP half, which is asked itself."""
        return True

    def terminate(self) -> None:
        self._launcher.signal(self._engine, "terminate")

    def dump(self) -> None:
        self._launcher.signal(self._engine, "dump")

    def kill(self) -> None:
        """Have it killed; one that cannot be reached counts as dead from now on."""
        self._launcher.signal(self._engine, "kill")
        if self._exit is None:
            self._exit = LOST

    def _launchers_exit(self) -> int | None:
        """Return the exit code of the launcher's process that has this life, if it has ended."""
        code = self._launcher.exit_code
        if code is None and self._launcher.num_starts == self._num_launcher_starts:
            return None
        self.failure = self._launcher.failure or "the launcher's process has ended"
        return code or LOST

    def _forget(self) -> None:
        self.failure, self.pid, self._hang = None, None, None
        self._exit = self._refused_at = None
        self._has_served, self._node = False, "no node"
        self._end()

    def _end(self) -> None:
        self._path.unlink(missing_ok=True)
        if self._feed is not None:
            self._feed.stop()
            self._feed = None

    def _read(self) -> dict[str, int]:
        return self._memory.read(self._engine)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "gone":
            if self._exit is None:
                self._exit, self.failure = LOST, f"{self.name} on {self._node}: {event['why']}"
            return
        if self._exit is None:
            self._exit, self.failure = event["exit"], event["failure"]
        self.pid, self._hang = event.get("pid"), event.get("hang")
        what, fraction = event.get("progress", ("", 0.0))
        if what:
            self._on_progress(self.name, what, fraction)
        if event.get("endpoint") and self._feed is None and self._exit is None:
            self._meet(msgspec.convert(event["endpoint"], Endpoint))

    def _meet(self, endpoint: Endpoint) -> None:
        """Let the HTTP half find the engine, and read its figures; without that it is given up."""
        self._node = endpoint.node
        try:
            endpoint.write(self._path)
            feed = SlotFeed(self._path, self._memory, self._engine, self._tls)
            feed.start()
        except (OSError, RuntimeError) as error:  # no room, or no more threads
            self._exit, self.failure = LOST, f"{self.name} on {self._node}: {error}"
            self._launcher.signal(self._engine, "kill")
            return
        self._feed = feed
        log.info("%s is on node %s", self.name, endpoint.node)

    def _is_refused_for_long(self) -> bool:
        if self._feed is None or not self._feed.is_refused:
            self._refused_at = None
            return False
        now = time.monotonic()
        self._refused_at = self._refused_at or now
        return now - self._refused_at > LAST_WORDS_SECONDS
