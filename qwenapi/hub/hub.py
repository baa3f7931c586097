"""Hub: where models come from that are no directory here; the seam between kinds of hubs."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.hub_name import HubName

Say = Callable[[str], None]
ReadCheckpoint = Callable[[Path], Checkpoint]


class Hub(Protocol):
    """Where models come from, and the cache they are kept in."""

    def fetch(self, name: HubName, read: ReadCheckpoint, say: Say) -> Path:
        """Return the directory of a model, all of whose files are there; raise ConfigError.

        `read` tells from its small files whether it can be served, before the weights are fetched.
        """

    def cached(self, name: HubName) -> Path | None:
        """Return the same without asking the hub; None if it is not there, or not whole."""
