"""ResponseWriter: one generation as a response of OpenAI's, whole or streamed."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from qwenapi.api.responses import render
from qwenapi.api.responses.items import item_id, sealed_thought
from qwenapi.api.responses.schemas import ResponseRequest
from qwenapi.errors import ApiError, Wording
from qwenapi.generation.chat import PreparedChat
from qwenapi.generation.chat_output import ChatDelta, ChatOutput
from qwenapi.generation.pieces import sent_pieces
from qwenapi.generation.stream import GenerationStream
from qwenapi.http.sse import named_events
from qwenapi.shared_fields.token_logprobs import TokenBytesOf, token_logprobs
from qwenapi.text.output.events import Text
from workers.wire.protocol import TokenLogprob


class ResponseWriter:
    """Puts the one choice of a stream into words.

    `body` is the response as it begins; `keep` is given it as it ends, before anybody is told.
    """

    def __init__(
        self,
        stream: GenerationStream,
        chat: PreparedChat,
        ask: ResponseRequest,
        begun: render.Payload,
        bytes_of: TokenBytesOf,
        keep: Callable[[render.Payload], None],
    ) -> None:
        self._stream = stream
        self._begun = begun
        self._bytes_of = bytes_of
        self._keep = keep
        self._output = ChatOutput(chat.new_parser)
        self._wants_logprobs = ask.logprobs is not None
        self._unsaid: tuple[TokenLogprob, ...] = ()  # of tokens whose text is held back
        # Ids go on where those of the input end.
        numbers = itertools.count(len(ask.items))
        self._items = render.OutputItems(
            lambda kind: item_id(kind, begun["id"], next(numbers)),
            sealed_thought if ask.seals_thoughts else None,
        )
        self._is_cut = False
        self._numbers = itertools.count()

    def body(self, watch: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return the whole response, kept; `watch` is called as it comes, and may end it."""
        for _ in self._batches():
            watch()
        return self._end()

    def events(self, wording: Wording) -> Iterator[bytes]:
        """Yield the server-sent events; everything that waits goes out as one piece."""
        begun = render.status_event(self._begun)
        created = begun | {"type": "response.created"}
        yield self._sent([created, begun])

        def failed(error: ApiError) -> bytes:
            message = wording.message(error)
            told = {"code": error.code or error.type, "message": message, "param": error.param}
            broken = render.failed(self._begun, message)
            return self._sent([{"type": "error", **told}, render.status_event(broken)])

        yield from sent_pieces(
            self._stream, self._pieces(), beat=lambda: self._sent([begun]), failed=failed
        )

    def _pieces(self) -> Iterator[bytes]:
        yield from map(self._sent, self._batches())
        yield self._sent([render.status_event(self._end())])

    def _end(self) -> render.Payload:
        stream = self._stream
        usage = render.ResponseUsage(
            stream.prompt_tokens,
            stream.completion_tokens,
            stream.cached_tokens,
            self._output.reasoning_tokens,
        )
        body = render.ended(
            self._begun, self._items.done, usage, is_cut=self._is_cut, now=int(time.time())
        )
        try:
            self._keep(body)
        except ApiError:
            stream.fail("storage_unavailable")  # all of it was generated, but is of no use
            raise
        return body

    def _batches(self) -> Iterator[list[render.Payload]]:
        """Yield the payloads of the output, what has come since the last time in one list."""
        for deltas in self._output.read(self._stream.deltas()):
            yield list(chain.from_iterable(map(self._payloads, deltas)))

    def _payloads(self, delta: ChatDelta) -> Iterator[render.Payload]:
        self._unsaid += delta.logprobs
        for event in delta.events:
            entries = self._unsaid if isinstance(event, Text) else ()
            yield from self._items.push(event, self._logprobs(entries))
            self._unsaid = ()
        if delta.finish_reason is not None:
            self._is_cut = delta.finish_reason == "length"
            yield from self._items.finish(is_cut=self._is_cut)

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        return token_logprobs(entries, self._bytes_of) if self._wants_logprobs else []

    def _sent(self, payloads: Sequence[render.Payload]) -> bytes:
        return named_events(
            payload | {"sequence_number": next(self._numbers)} for payload in payloads
        )
