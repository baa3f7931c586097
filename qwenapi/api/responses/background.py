"""A response that runs on without its caller: who polls is told what has become of it.

It counts as running while this process has its lease; whoever cancels takes the lease away.
"""

import logging
from collections.abc import Sequence

from qwenapi.api.responses import render, state
from qwenapi.api.responses.items import Item
from qwenapi.api.responses.writer import ResponseWriter
from qwenapi.conversations import ConversationError, LeaseLost, RunningResponse
from qwenapi.engines.mailbox import Cancelled
from qwenapi.errors import ApiError, InternalError, Wording
from qwenapi.generation.stream import GenerationStream

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
            error = ended  # by another, or for want of storage: then it counts as lost
        except Exception as failed:
            error = failed
            if not isinstance(failed, ApiError):
                log.exception("a response in the background failed")
            self._keep_failure(failed if isinstance(failed, ApiError) else InternalError())
        finally:
            self._stream.close(Cancelled() if isinstance(error, LeaseLost) else error)
            self._running.abandon()

    def keep(self, body: render.Payload) -> None:
        """Store the response as it has ended."""
        self._running.end(state.stored(body, self._items))

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
            self._running.update(state.stored(self._begun, self._items))
