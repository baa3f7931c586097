"""StateSlots: how much of a cache's memory the states of a hybrid's sequences take.

They have at most half of it, or the part that `state_memory_fraction` says: a slot for every
sequence that may run, a few more for snapshots of prefixes, and by itself another for every
SNAPSHOT_TOKENS that the blocks hold.
"""

from typing import NamedTuple

from workers.errors import ConfigError

SNAPSHOT_TOKENS = 2048
_MOST_SPARE = 8
_MOST_OF_MEMORY = 0.5


class StateSlots(NamedTuple):
    """Slots for `running` sequences, `spare` ones for snapshots, and `per_token` of the blocks; a
    trash slot beside them.
    """

    running: int
    spare: int
    per_token: float

    @classmethod
    def fit(
        cls, memory: int, slot_bytes: int, most_running: int, fraction: float = 0.0
    ) -> "StateSlots":
        """Return the slots for a cache of so many bytes; raise ConfigError if not one fits."""
        share = int((fraction or _MOST_OF_MEMORY) * memory)
        usable = share // slot_bytes - 1
        if usable < 1:
            raise ConfigError(
                f"the states of one sequence take {slot_bytes >> 20} MiB, and {share >> 20} MiB of"
                " cache are for them; raise kv_cache_gb or state_memory_fraction"
            )
        spare = min(_MOST_SPARE, usable // 2)
        running = min(most_running, usable - spare)
        if fraction:
            return cls(running, usable - running, 0.0)
        return cls(running, spare, 1 / SNAPSHOT_TOKENS)

    @property
    def fixed(self) -> int:
        """The slots there are whatever the number of blocks."""
        return 1 + self.running + self.spare

    def total(self, num_tokens: int) -> int:
        """Return the slots beside blocks for so many tokens."""
        return self.fixed + int(self.per_token * num_tokens)
