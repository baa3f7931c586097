"""SlotMirror: the slot of an engine on another machine, kept here as its updates say.

So whoever reads an engine's figures reads them in the same place and way, wherever it runs.
"""

import logging
import time

from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.protocol import SlotUpdate
from workers.wire.shared_memory import SharedMemory

log = logging.getLogger(__name__)

_BEAT = ENGINE_LAYOUT.index["beat_ns"]


class SlotMirror:
    """Holds a slot of a memory while the engine's connection lasts; the memory is another's."""

    def __init__(self, memory: SharedMemory, engine_index: int) -> None:
        self.memory = memory
        self._index = engine_index
        self._slot = memory.lease(engine_index)
        self._is_understood = True

    def take(self, update: SlotUpdate) -> None:
        """Write what has come; of another version's layout nothing can be read."""
        if update.layout_hash == ENGINE_LAYOUT.hash:
            values = list(update.values)
            values[_BEAT] = time.monotonic_ns() - update.age_ns
            self._slot.write(values)
        elif self._is_understood:
            self._is_understood = False
            log.warning(
                "engine-%d publishes in another version's layout: its figures are not shown",
                self._index,
            )

    def end(self) -> None:
        """Give the slot back: its engine is down, as far as can be seen from here."""
        self.memory.release(self._index)
