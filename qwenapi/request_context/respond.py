"""Respond: one generation as a response, whole or streamed, in an interface's format."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from flask import Response, g

from qwenapi.errors import Wording
from qwenapi.generation.request import GenerationRequest
from qwenapi.generation.sampling import Clamped, clamped_header
from qwenapi.generation.stream import GenerationStream
from qwenapi.http import sse
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import current_profile, new_stream
from qwenapi.text.tokenizer import Tokenizer


class AnswerWriter(Protocol):
    """Puts one stream into words, at once or as it comes."""

    def body(self) -> dict[str, Any]: ...

    def events(self, wording: Wording) -> Iterator[bytes]: ...


def respond(
    wanted: GenerationRequest,
    tokenizer: Tokenizer,
    write: Callable[[GenerationStream], AnswerWriter],
    *,
    streams: bool,
    cut: Clamped,
) -> Response:
    """Return the answer to the current request once an engine has accepted it; `cut` is named in
    `X-Clamped`. Raises an ApiError saying why not, or Cancelled.
    """
    stream = new_stream(tokenizer)
    try:
        stream.ask(wanted)
        writer = write(stream)
        if streams:
            response = sse.stream(writer.events(current_profile().wording(g.request_id)))
            response.call_on_close(stream.close)
        else:
            response = json_response(writer.body())
    except BaseException as error:
        stream.close(error)
        raise
    if not streams:
        stream.close()
    response.headers.update(clamped_header(cut))
    return response
