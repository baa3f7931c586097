"""BatchRunner: takes up batches that nobody runs, its own share of them in each process.

Which process runs which batch is settled by their leases alone; a batch whose process has died is
found by the next one who looks. Knows jobs and the store.
"""

import logging
import time
from collections import Counter

import gevent

from qwenapi.batches.errors import BatchesUnavailable
from qwenapi.batches.files import BadBatch
from qwenapi.batches.job import Asking, BatchJob
from qwenapi.batches.store import BatchStore
from qwenapi.batches.values import RequestBatch

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PURGE_SECONDS = 3600.0
# A batch that this process could not go on with is left to others, and to later.
FAILED_SECONDS = 30.0
MAX_BATCHES = 4
# The first of a tenant that runs none here need not wait for others' to end.
MAX_WITH_FIRSTS = 16


class BatchRunner:
    """Runs up to MAX_BATCHES in this process, and a first one of each tenant beyond them; tenants
    that run fewer come first, then what is older.
    """

    def __init__(self, store: BatchStore, asking: Asking) -> None:
        self._store = store
        self._asking = asking
        self._running: dict[str, str] = {}  # the tenants by batch
        self._not_before: dict[str, float] = {}
        self._purge_at = 0.0

    def run(self) -> None:
        """Look around for ever."""
        while True:
            self.tick()
            gevent.sleep(LOOK_SECONDS)

    def tick(self) -> None:
        """Look around once, and begin what can be begun."""
        try:
            if time.monotonic() >= self._purge_at:
                self._purge_at = time.monotonic() + PURGE_SECONDS
                self._store.purge()
            waiting = [one for one in self._store.open_batches() if self._is_free(one.id)]
            while waiting and not self._asking.is_stopping():
                num_running = Counter(self._running.values())
                batch = min(waiting, key=lambda one: num_running[one.tenant])
                room = MAX_BATCHES if num_running[batch.tenant] else MAX_WITH_FIRSTS
                if len(self._running) >= room:
                    break
                waiting.remove(batch)
                self._begin(batch)
        except BatchesUnavailable as error:
            log.warning("batches stand still until they can be stored: %s", error.__cause__)

    def _is_free(self, batch_id: str) -> bool:
        is_due = time.monotonic() >= self._not_before.get(batch_id, 0.0)
        return is_due and batch_id not in self._running

    def _begin(self, batch: RequestBatch) -> None:
        try:
            job = BatchJob.lease(self._store, batch, self._asking)
        except BadBatch as error:
            self._put_off(batch.id, error)
            return
        if job is not None:
            self._running[batch.id] = batch.tenant
            gevent.spawn(self._run, batch.id, job)

    def _run(self, batch_id: str, job: BatchJob) -> None:
        try:
            job.run()
            self._not_before.pop(batch_id, None)
        except Exception as error:
            self._put_off(batch_id, error)
        finally:
            self._running.pop(batch_id, None)

    def _put_off(self, batch_id: str, error: Exception) -> None:
        log.error("%s stopped, and is tried again", batch_id, exc_info=error)
        self._not_before[batch_id] = time.monotonic() + FAILED_SECONDS
