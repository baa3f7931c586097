"""QueueLimits: how many requests of one profile may run and wait together."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How many may run (0: the engine's limit) and wait, and for how long (s). `group` is the
    profile's name: an engine counts those of a group together.
    """

    group: str = ""
    max_running: int = 0
    max_waiting: int = 0
    queue_timeout: float = 300.0
