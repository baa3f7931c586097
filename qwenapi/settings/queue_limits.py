"""How many requests may run and wait together: what the engine is told of a group."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How many requests of one group may run and wait together (0 running: the engine's limit), and
    for how long (s).
    """

    group: str = ""
    max_running: int = 0
    max_waiting: int = 0
    queue_timeout: float = 300.0
