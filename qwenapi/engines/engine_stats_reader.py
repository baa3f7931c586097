"""EngineStatsReader: what engines publish in shared memory, read also while they are down.

One row for every engine number ever met, of the memory it was last met with. Knows hellos alone.
"""

import logging
import os
import time
from collections.abc import Container, Mapping
from pathlib import Path

from workers.errors import SharedMemoryError
from workers.wire.engine_stats import ENGINE_COUNTERS, ENGINE_LAYOUT, READY, EngineRow, Phase
from workers.wire.protocol import Hello
from workers.wire.shared_memory import SharedMemory
from workers.wire.slot_mirror import SlotMirror

log = logging.getLogger(__name__)


class EngineStatsReader:
    """The shared memory of the engines met so far."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[Hello, SharedMemory]] = {}
        self._mirrored: dict[int, SharedMemory] = {}

    def meet(self, hello: Hello, *, is_remote: bool = False) -> SlotMirror | None:
        """Read this engine where its hello says from now on; one on another machine, in the mirror
        that is returned.
        """
        index = hello.engine_index
        if is_remote:
            # For life, as its figures are those of the engine's next connection, too.
            if index not in self._mirrored:
                self._mirrored[index] = SharedMemory.private(ENGINE_LAYOUT, index + 1)
            self._note(hello, self._mirrored[index])
            return SlotMirror(self._mirrored[index], index)
        memory = open_shared_memory(hello)
        if memory is not None:
            self._note(hello, memory)
        return None

    def _note(self, hello: Hello, memory: SharedMemory) -> None:
        known = self._met.get(hello.engine_index)
        if known is not None and known[1] is not self._mirrored.get(hello.engine_index):
            known[1].close()
        self._met[hello.engine_index] = (hello, memory)

    def rows(self, ready: Container[int]) -> list[EngineRow]:
        """Return a row for each engine; `ready` are the numbers of those that take requests."""
        return [
            _row(hello, memory, engine in ready)
            for engine, (hello, memory) in sorted(self._met.items())
        ]


def open_shared_memory(hello: Hello) -> SharedMemory | None:
    """Return the memory an engine publishes in, or None where there is none to read."""
    try:
        return (
            SharedMemory.open(Path(hello.shared_memory_path), ENGINE_LAYOUT)
            if os.path.exists(hello.shared_memory_path)
            else None
        )
    except SharedMemoryError as error:
        log.warning("readiness follows pings alone: %s", error)
        return None


def _row(hello: Hello, memory: SharedMemory, is_ready: bool) -> EngineRow:
    values = memory.read(hello.engine_index)
    state = READY if is_ready else _trouble(values)
    if not memory.is_leased(hello.engine_index):
        state = "down"
        values = {name: values[name] if name in ENGINE_COUNTERS else 0 for name in values}
    return EngineRow(hello.engine_index, hello.card.device, state, values, hello.node)


def _trouble(values: Mapping[str, int]) -> str:
    """Return why a process that lives takes no requests."""
    silence_ns = time.monotonic_ns() - values["beat_ns"]
    if silence_ns > values["step_timeout_ns"]:
        return f"silent for {silence_ns / 1e9:.0f} s"
    return {Phase.LOADING: "loading", Phase.DRAINING: "draining"}.get(
        values["phase"], "not connected"
    )
