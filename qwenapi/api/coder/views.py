"""Views of `/v1/code/…`: one answer, a streamed turn of a conversation, conversations kept.

The stream is plain text under an event-stream label: on a first turn a preface with the new id, one
write of its own, then one write for each frame of the engine. A stream that fails ends without its
last chunk, so that the caller's library raises; a turn is kept whole or not at all.
"""

import logging
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain

import gevent
from flask import Blueprint, Response, g, request

from qwenapi.api.coder.render import conversation_pieces, preface
from qwenapi.api.coder.schemas import CodeRequest, CodeSchema
from qwenapi.conversations import (
    ITEMS_PREFIX,
    ConversationError,
    ConversationNotFound,
    LeaseLost,
    PastTurn,
    Turn,
    fit,
)
from qwenapi.engines.mailbox import Cancelled
from qwenapi.errors import ApiError, NotFound
from qwenapi.generation.delta import gather
from qwenapi.generation.prompt import encode_chat
from qwenapi.generation.request import GenerationRequest
from qwenapi.generation.sampling import SamplingRequest
from qwenapi.generation.stream import GenerationStream
from qwenapi.http import sse
from qwenapi.http.body import read_fields
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import (
    caller,
    count_post,
    current_profile,
    generation_request,
    load_body,
    new_stream,
)
from qwenapi.request_context.services import conversations, served_model
from qwenapi.request_context.storage_errors import storage_errors
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import ModelCard

blueprint = Blueprint("coder", __name__)
blueprint.before_request(count_post)
log = logging.getLogger(__name__)

# The part of the context that a history leaves to the answer, at the least.
MIN_ANSWER_SHARE = 4
MAX_SHOWN_CHARS = 64

_schema = CodeSchema()


@blueprint.post("/v1/code/generate")
def generate() -> Response:
    ask: CodeRequest = load_body(_schema, read_fields(request))
    card, tokenizer = served_model()
    ids = _encode(tokenizer, (), ask.prompt)
    with new_stream(tokenizer) as stream:
        stream.ask(_wanted(ids, card))
        (whole,) = gather(stream.deltas())
    return json_response({"status": "success", "result": whole.text})


@blueprint.post("/v1/code/chat_stream")
def chat_stream() -> Response:
    ask: CodeRequest = load_body(_schema, read_fields(request))
    card, tokenizer = served_model()
    stream = new_stream(tokenizer)
    turn: Turn | None = None
    try:
        turn = _begin(ask, stream)
        history = fit(
            turn.history,
            lambda turns: len(_encode(tokenizer, turns, ask.prompt)),
            card.max_model_len - card.max_model_len // MIN_ANSWER_SHARE,
        )
        stream.ask(_wanted(_encode(tokenizer, history, ask.prompt), card))
    except BaseException as error:
        stream.close(error)
        if turn is not None:
            turn.rollback()
        raise
    is_new = turn.conversation_id != ask.conversation_id
    text = TurnText(stream, turn, has_preface=is_new or current_profile().repeats_preface)
    response = sse.stream(text.pieces())
    response.call_on_close(text.close)
    return response


@blueprint.get("/v1/code/conversations/<conversation_id>")
def export(conversation_id: str) -> Response:
    with translated(conversation_id):
        conversation = conversations().find(caller().tenant, plain(conversation_id))
        pages = conversations().pages(caller().tenant, conversation)
        first = next(pages, ())  # what fails from here on can only cut the answer off
    pieces = conversation_pieces(conversation, chain((first,), pages))
    return Response(pieces, mimetype="application/json")


@blueprint.delete("/v1/code/conversations/<conversation_id>")
def delete(conversation_id: str) -> Response:
    with translated(conversation_id):
        conversations().delete(caller().tenant, plain(conversation_id))
    return Response(status=204)


def plain(conversation_id: str) -> str:
    """Return the id of a conversation of texts; one of items is for another interface."""
    if conversation_id.startswith(ITEMS_PREFIX):
        raise ConversationNotFound()
    return conversation_id


def translated(conversation_id: str | None) -> AbstractContextManager[None]:
    """Raise the store's errors as what a caller is told."""
    shown = (conversation_id or "")[:MAX_SHOWN_CHARS]
    return storage_errors(lambda: NotFound(f"会话不存在或已过期: {shown}"), param="prompt")


class TurnText:
    """The text of one turn on its way; the turn is committed before the last chunk goes out."""

    def __init__(self, stream: GenerationStream, turn: Turn, *, has_preface: bool) -> None:
        self._stream = stream
        self._turn = turn
        self._has_preface = has_preface
        self._request_id = g.request_id
        self._environ = request.environ

    def pieces(self) -> Iterator[bytes]:
        # An empty piece still sends the headers: the turn is accepted, and its status is final.
        yield preface(self._turn.conversation_id) if self._has_preface else b""
        texts: list[str] = []
        reason = ""
        try:
            for deltas in self._stream.deltas():
                if self._turn.is_lost:  # what is still to come could not be kept
                    raise LeaseLost()
                for delta in deltas:
                    texts.append(delta.text)
                    reason = delta.finish_reason or reason
                    if delta.text:
                        yield delta.text.encode()
            self._turn.commit("".join(texts), reason)
        except Cancelled:
            return
        except (ApiError, ConversationError) as error:
            log.warning("request %s broke off: %s", self._request_id, type(error).__name__)
            self._stream.fail("storage_unavailable")
            self._break_off()
        except Exception:
            self._stream.fail("internal_error")  # or closing would call it the caller's doing
            raise

    def close(self) -> None:
        """Free the engine and, unless it was committed, forget the turn."""
        self._stream.close()
        self._turn.rollback()

    def _break_off(self) -> None:
        """End the connection without the last chunk: the caller must not take this for the end."""
        sock = self._environ.get("gunicorn.socket")
        if sock is not None:
            try:
                sock._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def _begin(ask: CodeRequest, stream: GenerationStream) -> Turn:
    """Return the turn once those before it in its conversation have ended."""
    profile = current_profile()
    deadline = time.monotonic() + profile.settings.limits_queue_timeout

    def pause(seconds: float) -> None:
        gevent.sleep(seconds)
        stream.check_caller()

    def begin(conversation_id: str | None) -> Turn:
        return conversations().begin_turn(
            caller().tenant,
            conversation_id,
            ask.prompt,
            owner=g.request_id,
            deadline=deadline,
            pause=pause,
        )

    with translated(ask.conversation_id):
        try:
            return begin(plain(ask.conversation_id) if ask.conversation_id else None)
        except ConversationNotFound:
            if not profile.new_for_unknown:
                raise
            return begin(None)


def _encode(tokenizer: Tokenizer, history: Sequence[PastTurn], prompt: str) -> list[int]:
    messages = [message for turn in history for message in turn.messages]
    messages.append({"role": "user", "content": prompt})
    return encode_chat(tokenizer, messages, current_profile().thinking, param="prompt")


def _wanted(ids: list[int], card: ModelCard) -> GenerationRequest:
    """Return what to ask; the document's callers choose no parameters."""
    return generation_request(SamplingRequest(), [ids], card)[0]
