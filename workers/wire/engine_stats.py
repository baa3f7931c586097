"""EngineStats: the numbers an engine publishes, where they lie in its slot, and a row as read.

How to add a number: qwenapi/metrics/__init__.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from workers.wire.layout import Layout

READY = "ready"


@dataclass(frozen=True)
class EngineStats:
    """Numbers of this moment (sequences, blocks, slots, bytes), and counters since the start."""

    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    free_state_slots: int = 0  # blank, or a snapshot's; a dense model has none
    total_state_slots: int = 0  # without those for drafts
    state_snapshots: int = 0
    state_snapshot_hits: int = 0  # sequences that went on from one
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of the drafted
    nonfinite_logits: int = 0  # requests that failed for them
    encoded_images: int = 0  # that went through the tower
    cached_images: int = 0  # whose features were kept from before
    device_allocated: int = 0  # bytes, as torch counts them; 0 on a CPU
    device_reserved: int = 0
    device_total: int = 0


ENGINE_LAYOUT = Layout(
    "engine",
    (
        "pid",
        "starts",  # processes this slot has had
        "generation",
        "phase",
        "step",
        "beat_ns",  # time.monotonic_ns() of the engine loop's last sign of life
        "step_timeout_ns",
        *(field.name for field in fields(EngineStats)),
    ),
)
# What goes on counting when a slot's next process takes over; the rest is of this moment.
ENGINE_COUNTERS = (
    "starts",
    "step",
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
    "preemptions",
    "drafted_tokens",
    "accepted_tokens",
    "nonfinite_logits",
    "state_snapshot_hits",
    "encoded_images",
    "cached_images",
)
# What is of this moment: nothing, until an engine has loaded.
ENGINE_GAUGES = tuple(
    field.name for field in fields(EngineStats) if field.name not in ENGINE_COUNTERS
)


class Phase:
    """What an engine loop is doing; the values of the field `phase`."""

    NONE, LOADING, IDLE, STEPPING, DRAINING = range(5)


@dataclass(frozen=True)
class EngineRow:
    """One engine: its number, its device (`cpu`, `cuda:0`, `stub`), its state, its slot's values,
    and its node's name; a node is a machine of a cluster, and this one has none.

    Of a process that is gone only the counters are left, the rest is 0.
    """

    engine: int
    device: str
    state: str
    values: Mapping[str, int]
    node: str = ""

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
    def has_state(self) -> bool:
        """Return whether its model is a hybrid, of which sequences hold state slots."""
        return self.values["total_state_slots"] > 0

    @property
    def used_state_slots(self) -> int:
        return self.values["total_state_slots"] - self.values["free_state_slots"]

    @property
    def num_restarts(self) -> int:
        return max(0, self.values["starts"] - 1)
