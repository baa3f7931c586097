"""MessageWriter: one generation as a message of Anthropic's, whole or streamed."""

import uuid
from collections.abc import Iterator
from itertools import chain
from typing import Any

from qwenapi.api.anthropic import render
from qwenapi.errors import DIALECTS, ApiError, Wording
from qwenapi.generation.chat import PreparedChat
from qwenapi.generation.chat_output import ChatDelta, ChatOutput
from qwenapi.generation.pieces import sent_pieces
from qwenapi.generation.stream import GenerationStream
from qwenapi.http.sse import named_events
from qwenapi.settings.profile import Profile


class MessageWriter:
    """Puts the one choice of a stream into words."""

    def __init__(
        self,
        stream: GenerationStream,
        chat: PreparedChat,
        profile: Profile,
        *,
        shows_thinking: bool,
    ) -> None:
        self._stream = stream
        self._profile = profile
        self._output = ChatOutput(chat.new_parser)
        self._counts_thinking = chat.thinking != "off"
        self._blocks = render.ContentBlocks(shows_thinking=shows_thinking)
        self._id = f"msg_{uuid.uuid4().hex[:24]}"
        self._ending = render.stop(None, None)

    def body(self) -> dict[str, Any]:
        """Return the whole message."""
        content = render.fold_content(chain.from_iterable(self._batches()))
        return self._message(content, self._ending)

    def events(self, wording: Wording) -> Iterator[bytes]:
        """Yield the server-sent events; everything that waits goes out as one piece."""

        def failed(error: ApiError) -> bytes:
            body = DIALECTS[self._profile.dialect](error, wording).body
            return named_events([{"type": "error"} | body])

        yield named_events([render.message_start(self._message()), render.PING])
        yield from sent_pieces(
            self._stream,
            self._pieces(),
            beat=lambda: named_events([render.PING]),
            failed=failed,
        )

    def _pieces(self) -> Iterator[bytes]:
        yield from map(named_events, self._batches())
        ending = render.message_delta(self._ending, self._usage())
        yield named_events([ending, render.MESSAGE_STOP])

    def _batches(self) -> Iterator[list[render.Payload]]:
        """Yield the payloads of the content, what has come since the last time in one list."""
        for deltas in self._output.read(self._stream.deltas()):
            yield list(chain.from_iterable(map(self._payloads, deltas)))

    def _payloads(self, delta: ChatDelta) -> Iterator[render.Payload]:
        for event in delta.events:
            yield from self._blocks.push(event)
        if delta.finish_reason is not None:
            yield from self._blocks.finish()
            self._ending = render.stop(delta.finish_reason, delta.stop)

    def _message(self, *parts: Any) -> dict[str, Any]:
        return render.message(self._id, self._profile.canonical, self._usage(), *parts)

    def _usage(self) -> render.MessageUsage:
        stream = self._stream
        return render.MessageUsage(
            stream.prompt_tokens,
            stream.completion_tokens,
            stream.cached_tokens,
            self._output.reasoning_tokens if self._counts_thinking else None,
        )
