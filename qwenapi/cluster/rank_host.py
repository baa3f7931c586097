"""RankHost: keeps ranks of an engine on a node where its first rank is not.

Ray makes an actor of it there. The ranks end with this process; the first that ends by itself is
told, and who keeps the engine ends it then on all nodes. Knows nothing of Ray.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qwenapi.cluster.engine_host import be_no_script, config_of, prepared
from workers.errors import WorkerError
from workers.worker.followers import Followers


class RankHost:
    """Some ranks of one engine, from `start` to the first exit of one."""

    def __init__(self) -> None:
        be_no_script()
        self._followers: Followers | None = None
        self._end: tuple[int | None, str | None] = (None, None)

    def start(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Start the ranks from `first_rank` on, which find the first at `rendezvous`; what is wrong
        is told as the exit of one would be.
        """
        try:
            config = replace(
                config_of(prepared(job), job),
                rank=job["first_rank"],
                rendezvous=job["rendezvous"],
            )
        except WorkerError as error:
            self._end = int(error.exit_code), str(error)
        else:
            self._followers = Followers(config, f"engine-{job['engine']}")
            self._followers.start(self._on_end)
        return self.look()

    def look(self) -> dict[str, Any]:
        """Return whether one has ended, and why."""
        code, failure = self._end
        return {"exit": code, "failure": failure}

    def signal(self, name: str) -> None:
        """Do nothing: the first rank is spoken to, and the others follow it."""

    def _on_end(self, why: str, code: int) -> None:
        self._end = code, why
