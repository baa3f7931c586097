"""ConfigReload: step 1 of a reload, the settings read anew by a process of its own.

It runs the code that lies on disk at that moment, as the server it is for will; and the supervisor
never waits for a tokenizer to load.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

from qwenapi.serving.startup_config import StartupConfig
from qwenapi.settings.table import Settings
from workers.errors import ConfigError

Half = Literal["http", "model"]
Child = TypeVar("Child")

PATIENCE_SECONDS = 60.0
# What the supervisor itself holds, so that only a restart changes it.
FIXED = ("host", "port", "uds", "run_dir", "drain_timeout", "cluster", "standby", "standby_weights")
# What the launcher of a cluster holds besides.
FIXED_IN_CLUSTER = (
    "tensor_parallel_size", "allow_cross_node_tp", "threads", "device", "model_name",
)  # fmt: skip


class ConfigReload(Generic[Child]):
    """A `workers.supervisor.reload.ReloadPlan`: `build` makes the children of what was read."""

    def __init__(
        self,
        half: Half,
        flags: Sequence[str],
        now: Settings,
        build: Callable[[StartupConfig], Sequence[Child]],
    ) -> None:
        """`flags` are those of the start; `now`: the settings in force."""
        self._now = now
        self._build = build
        self._give_up_at = time.monotonic() + PATIENCE_SECONDS
        self._output, self._words = (os.memfd_create(name) for name in ("output", "words"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qwenapi", "check", *flags, "--startup-config", half],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._words,
        )

    def poll(self) -> Sequence[Child] | None:
        """Return the new children, or None while it goes on; raise ConfigError if it failed."""
        code = self._process.poll()
        if code is None:
            if time.monotonic() < self._give_up_at:
                return None
            self._process.kill()
            code = self._process.wait()
        output, words = _drained(self._output), _drained(self._words)
        if code != 0:
            lines = words.decode(errors="replace").strip().splitlines()
            raise ConfigError((lines or ["the settings could not be read"])[-1])
        startup_config = StartupConfig.from_json(output)
        for name in (*FIXED, *(FIXED_IN_CLUSTER if self._now.cluster else ())):
            if getattr(startup_config.settings, name) != getattr(self._now, name):
                raise ConfigError(f"{name} cannot change at a reload: restart")
        return self._build(startup_config)


def _drained(fd: int) -> bytes:
    text = os.pread(fd, os.fstat(fd).st_size, 0)
    os.close(fd)
    return text
