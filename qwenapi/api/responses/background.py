"""A response that runs on without its caller: who polls is told what has become of it.

It counts as running while this process has its lease; whoever cancels takes the lease away.
"""

import logging
import time
from collections.abc import Sequence

import gevent

from qwenapi.api.responses import render, state
from qwenapi.api.responses.items import Item
from qwenapi.api.responses.writer import ResponseWriter
from qwenapi.conversations import (
    ConversationError,
    LeaseLost,
    RunningResponse,
    StorageUnavailable,
    StoreFull,
)
from qwenapi.engines.mailbox import Cancelled
from qwenapi.errors import ApiError, InsufficientStorage, InternalError, Wording
from qwenapi.generation.stream import GenerationStream

RETRY_SECONDS = 1.0
KEEP_SECONDS = 15.0  # as long as a lease that nobody can renew

log = logging.getLogger(__name__)


class BackgroundRun:
    """One response in the background. `begun` is the response as it is while it runs."""

    def __init__(
        self,
        running: RunningResponse,
        stream: GenerationStream,
        begun: render.Payload,
        items: Sequence[Item],
        wording: Wording,
    ) -> None:
        self._running = running
        self._stream = stream
        self._begun = begun
        self._items = items
        self._wording = wording
        self._is_begun = False

    def run(self, writer: ResponseWriter) -> None:
        """Let it end, in whatever way; its writer keeps it by `keep`."""
        error: BaseException | None = None
        try:
            writer.body(self._watch)
        except (Cancelled, ConversationError) as ended:
            error = ended  # by another, or the storage is away: then it counts as lost
        except Exception as failed:
            error = failed
            if not isinstance(failed, ApiError):
                log.exception("a response in the background failed")
            self._keep_failure(failed if isinstance(failed, ApiError) else InternalError())
        finally:
            self._stream.close(Cancelled() if isinstance(error, LeaseLost) else error)
            self._running.abandon()

    def keep(self, body: render.Payload) -> None:
        """Store the response as it has ended, as soon as the storage lets it while it is ours."""
        response = state.stored(body, self._items)
        deadline = time.monotonic() + KEEP_SECONDS
        while True:
            try:
                self._running.end(response)
                return
            except StoreFull as error:
                raise InsufficientStorage(str(error)) from error
            except StorageUnavailable as error:
                if self._running.is_lost or time.monotonic() > deadline:
                    raise
                log.warning("a response in the background waits to be kept: %s", error.__cause__)
            gevent.sleep(RETRY_SECONDS)

    def _keep_failure(self, error: ApiError) -> None:
        try:
            self.keep(render.failed(self._begun, self._wording.message(error)))
        except ConversationError as why:
            log.warning("a response in the background was not kept: %s", why)

    def _watch(self) -> None:
        """Say once that it has begun; raise Cancelled when somebody has ended it."""
        if self._running.is_lost:
            raise Cancelled
        if not self._is_begun:
            self._is_begun = True
            try:
                self._running.update(state.stored(self._begun, self._items))
            except StorageUnavailable as error:
                log.warning("a response stays queued for its reader: %s", error.__cause__)
