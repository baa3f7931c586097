"""LeaseKeeper: a thread that renews the leases of turns that run here, and purges.

Under gevent it is a greenlet. Knows two callables and the claims it holds, no storage.
"""

import logging
import threading
from collections.abc import Callable, Collection

from qwenapi.conversations.errors import StorageUnavailable
from qwenapi.conversations.values import Claim

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews every `seconds` what `hold` was told of, until it is dropped or found lost."""

    def __init__(
        self,
        renew: Callable[[Collection[Claim]], set[Claim]],
        purge: Callable[[], int],
        seconds: float,
    ) -> None:
        self._renew = renew
        self._purge = purge
        self._seconds = seconds
        self._held: set[Claim] = set()
        self._thread: threading.Thread | None = None
        self._is_stopping = threading.Event()

    def hold(self, claim: Claim) -> None:
        self._held.add(claim)
        self.start()

    def drop(self, claim: Claim) -> None:
        self._held.discard(claim)

    def drop_all(self, conversation_id: str) -> None:
        """Drop what is held here of a conversation that another has ended."""
        self._held -= {one for one in tuple(self._held) if one.conversation_id == conversation_id}

    def holds(self, claim: Claim) -> bool:
        return claim in self._held

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._thread is None and not self._is_stopping.is_set():
            self._thread = threading.Thread(target=self._loop, name="lease-keeper", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._is_stopping.set()
        if self._thread is not None:
            self._thread.join()

    def tick(self) -> None:
        """Renew what is held; erase one batch of what has expired."""
        try:
            if self._held:
                lost = self._renew(tuple(self._held))
                self._held -= lost
                if lost:
                    log.warning("lost the lease of %d conversation turns", len(lost))
            self._purge()
        except StorageUnavailable as error:
            log.warning("conversation leases were not renewed: %s", error.__cause__)

    def _loop(self) -> None:
        while not self._is_stopping.wait(self._seconds):
            try:
                self.tick()
            except Exception:  # the thread must live: without it every turn is lost
                log.exception("conversation leases were not renewed")
