"""StateSlots: how much of a cache's memory the recurrent states of hybrid models take.

They have at most half of it, or the part that `state_memory_fraction` says: a slot for every
sequence that may run, a few more for snapshots of prefixes, one for each draft of a step, and by
itself another for every SNAPSHOT_TOKENS that the blocks hold.
"""

from typing import NamedTuple

from workers.errors import ConfigError

SNAPSHOT_TOKENS = 2048
_MOST_SPARE = 8
_MOST_OF_MEMORY = 0.5


class StateSlots(NamedTuple):
    """Slots for `running` sequences, `spare` ones for snapshots, those that `drafts` go back to,
    and `per_token` of the blocks; a trash slot beside them.
    """

    running: int
    spare: int
    drafts: int
    per_token: float

    @classmethod
    def fit(
        cls, memory: int, slot_bytes: int, most_running: int, drafts: int, fraction: float
    ) -> "StateSlots":
        """Return the slots for a cache of so many bytes; raise ConfigError if not one fits.

        A `fraction` of 0 means the usual one.
        """
        share = int((fraction or _MOST_OF_MEMORY) * memory)
        usable = share // slot_bytes - 1 - drafts
        if usable < 1:
            and_drafts = f", {drafts} more of them are for drafts" if drafts else ""
            raise ConfigError(
                f"the states of one sequence take {slot_bytes >> 20} MiB{and_drafts}, and"
                f" {share >> 20} MiB of cache are for them; raise kv_cache_gb or"
                " state_memory_fraction" + (", or draft fewer tokens" if drafts else "")
            )
        spare = min(_MOST_SPARE, usable // 2)
        running = min(most_running, usable - spare)
        if fraction:
            return cls(running, usable - running, drafts, 0.0)
        return cls(running, spare, drafts, 1 / SNAPSHOT_TOKENS)

    @property
    def fixed(self) -> int:
        """The slots there are whatever the number of blocks."""
        return 1 + self.running + self.spare + self.drafts

    def total(self, num_tokens: int) -> int:
        """Return the slots beside blocks for so many tokens."""
        return self.fixed + int(self.per_token * num_tokens)
