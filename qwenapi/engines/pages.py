"""What engines publish of themselves in their pages, read also while they are down.

One row for every engine number ever met, of the page it was last met on. Knows pages and hellos;
refuses to know connections.
"""

import logging
import os
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.errors import PageError
from workers.page import ENGINE_COUNTERS, ENGINE_LAYOUT, Phase, SharedPage
from workers.protocol import Hello

log = logging.getLogger(__name__)

READY = "ready"


@dataclass(frozen=True)
class EngineRow:
    """One engine: its number, its device (`cpu`, `cuda:0`, `stub`), how it is, and its page's
    fields; of a process that is gone only the counters are left, the rest is 0.
    """

    engine: int
    device: str
    state: str
    values: Mapping[str, int]

    @property
    def is_up(self) -> bool:
        return self.state == READY

    @property
    def has_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def kv_cache_usage(self) -> float:
        """Return the used share of the cache's blocks."""
        total = self.values["total_blocks"]
        return 1 - self.values["free_blocks"] / total if total else 0.0

    @property
    def num_restarts(self) -> int:
        return max(0, self.values["starts"] - 1)


class EnginePages:
    """The pages of the engines met so far."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[Hello, SharedPage]] = {}

    def meet(self, hello: Hello) -> None:
        """Read this engine where its hello says, from now on."""
        page = open_page(hello)
        if page is None:
            return
        if known := self._met.get(hello.engine_index):
            known[1].close()
        self._met[hello.engine_index] = (hello, page)

    def rows(self, ready: Container[int]) -> list[EngineRow]:
        """Return a row for each engine; `ready` are the numbers of those that take requests."""
        return [
            _row(hello, page, engine in ready)
            for engine, (hello, page) in sorted(self._met.items())
        ]


def open_page(hello: Hello) -> SharedPage | None:
    """Return the page of an engine, or None where there is none to read."""
    try:
        return (
            SharedPage.open(Path(hello.page_path), ENGINE_LAYOUT)
            if os.path.exists(hello.page_path)
            else None
        )
    except PageError as error:
        log.warning("readiness follows pings alone: %s", error)
        return None


def _row(hello: Hello, page: SharedPage, is_ready: bool) -> EngineRow:
    values = page.read(hello.engine_index)
    state = READY if is_ready else _trouble(values)
    if not page.is_leased(hello.engine_index):
        state = "down"
        values = {name: values[name] if name in ENGINE_COUNTERS else 0 for name in values}
    return EngineRow(hello.engine_index, hello.card.device, state, values)


def _trouble(values: Mapping[str, int]) -> str:
    """Return why a process that lives takes no requests."""
    silence_ns = time.monotonic_ns() - values["beat_ns"]
    if silence_ns > values["step_timeout_ns"]:
        return f"silent for {silence_ns / 1e9:.0f} s"
    return {Phase.LOADING: "loading", Phase.DRAINING: "draining"}.get(
        values["phase"], "not connected"
    )
