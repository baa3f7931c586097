"""Views of OpenAI's interface: chat completions and completions, whole or streamed, and models."""

import hashlib
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from flask import Blueprint, Response, g

from qwenapi import __version__
from qwenapi.api.openai import render
from qwenapi.api.openai.clamp import clamp
from qwenapi.api.openai.schemas import (
    ChatRequest,
    ChatSchema,
    CompletionRequest,
    CompletionSchema,
    Prompt,
)
from qwenapi.engines.mailbox import Cancelled
from qwenapi.errors import (
    DIALECTS,
    ApiError,
    BadRequest,
    EngineUnavailable,
    ModelNotFound,
    Wording,
)
from qwenapi.generation.delta import Delta, gather
from qwenapi.generation.prompt import beside_others, encode_chat
from qwenapi.generation.request import GenerationRequest
from qwenapi.generation.sampling import (
    Clamped,
    SamplingRequest,
    check_token_ids,
    clamped_header,
)
from qwenapi.generation.stream import GenerationStream
from qwenapi.http import sse
from qwenapi.http.body import accepts
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import (
    caller,
    count_request,
    current_profile,
    generation_request,
    load_body,
    new_stream,
    use_profile,
)
from qwenapi.request_context.services import served_model, services
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import TokenLogprob

blueprint = Blueprint("openai", __name__)


@dataclass(frozen=True)
class Form:
    """What differs between the two interfaces once the prompts are known."""

    make_id: Callable[[str], str]
    chunks: type[render.Chunks]
    body: Callable[[render.Reply, Sequence[render.ReplyChoice], render.TokenUsage], dict[str, Any]]
    logprobs: Callable[
        [Sequence[TokenLogprob], render.TokenBytesOf, render.TextOffsets, bool], dict[str, Any]
    ]


CHAT = Form(
    render.chat_id,
    render.ChatChunks,
    render.chat_body,
    lambda entries, bytes_of, offsets, has_refusal: render.chat_logprobs(
        entries, bytes_of, has_refusal=has_refusal
    ),
)
COMPLETION = Form(
    render.completion_id,
    render.CompletionChunks,
    render.completion_body,
    lambda entries, bytes_of, offsets, has_refusal: render.completion_logprobs(
        entries, bytes_of, offsets
    ),
)


def _choose_profile(body: dict[str, Any]) -> None:
    """Let the profile of the model asked for answer, and cut what it documents as cut."""
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        return  # the schema says what is wrong with it
    profile = services().profiles.for_model(name, caller().models)
    use_profile(profile)
    count_request()
    if name is None and profile.requires_model:
        raise BadRequest("'model' is required.", param="model", kind="missing")
    g.clamped = clamp(body, profile) if profile.clamp else {}


# The browser document's page asks below /api, its drawing without any prefix.
@blueprint.post("/v1/chat/completions")
@blueprint.post("/api/chat/completions", endpoint="chat_completions_of_page")
@blueprint.post("/chat/completions", endpoint="chat_completions_bare")
@accepts(ChatSchema, before=_choose_profile, load=load_body)
def chat_completions(ask: ChatRequest) -> Response:
    card, tokenizer = served_model()
    thinking = ask.enable_thinking
    if thinking is None:
        thinking = current_profile().thinking
    ids = encode_chat(tokenizer, ask.messages, thinking, param="messages")
    asked = generation_request(ask, [ids], card, current_profile().chat_max_tokens)
    return _respond(ask, asked, CHAT, tokenizer)


@blueprint.post("/v1/completions")
@accepts(CompletionSchema, before=_choose_profile, load=load_body)
def completions(ask: CompletionRequest) -> Response:
    card, tokenizer = served_model()
    for prompt in ask.prompts:
        if not isinstance(prompt, str):
            check_token_ids(prompt, card.vocab_size, "prompt")
    size = sum(len(prompt) for prompt in ask.prompts)
    prompts = beside_others(size, lambda: [_encode(tokenizer, ask, p) for p in ask.prompts])
    asked = generation_request(ask, prompts, card, current_profile().completion_max_tokens)
    return _respond(ask, asked, COMPLETION, tokenizer)


@blueprint.get("/v1/models")
def models() -> Response:
    return json_response(render.model_list(list(_model_cards().values())))


@blueprint.get("/v1/models/<path:model>")
def model(model: str) -> Response:
    """Answer with one entry of the list; slashes of a name may be encoded, or doubled."""
    cards = _model_cards()
    for name, found in cards.items():
        if _plain(name) == _plain(model):
            return json_response(found)
    raise ModelNotFound(model, tuple(cards))


def _model_cards() -> dict[str, dict[str, Any]]:
    """Return what is said of each name that the caller's key may ask for."""
    card, names = services().engine.card, services().profiles.names_for(caller().models)
    if card is None:
        raise EngineUnavailable(retry_after=1)
    since, length = services().tokenizers.since, card.max_model_len
    return {
        name: render.model_card(name, root=names[0], created=since, max_model_len=length)
        for name in names
    }


def _plain(name: str) -> str:
    """Return a name as it is left where an address loses doubled slashes and those at its ends."""
    return re.sub("/+", "/", name).strip("/")


def _encode(tokenizer: Tokenizer, ask: CompletionRequest, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, ask.add_special_tokens)
    return list(prompt)


@cache
def _fingerprint(model_hash: str) -> str:
    """Return what changes when answers to one seed may: this build, or the model."""
    return f"fp_{hashlib.sha256(f'{__version__} {model_hash}'.encode()).hexdigest()[:10]}"


def _respond(
    ask: SamplingRequest,
    asked: tuple[GenerationRequest, Clamped],
    form: Form,
    tokenizer: Tokenizer,
) -> Response:
    wanted, cut = asked
    stream = new_stream(tokenizer)
    try:
        stream.ask(wanted)
        writer = Writer(stream, ask, form, tokenizer, wanted)
        if ask.stream:
            response = sse.stream(writer.events(current_profile().wording(g.request_id)))
            response.call_on_close(stream.close)
        else:
            response = json_response(writer.body())
    except BaseException as error:
        stream.close(error)
        raise
    if not ask.stream:
        stream.close()
    response.headers.update(clamped_header(g.clamped | cut))
    return response


class Writer:
    """Puts one stream into words, at once or as it comes."""

    def __init__(
        self,
        stream: GenerationStream,
        ask: SamplingRequest,
        form: Form,
        tokenizer: Tokenizer,
        wanted: GenerationRequest,
    ) -> None:
        self._profile = current_profile()
        self._stream = stream
        self._ask = ask
        self._form = form
        self._num_choices = len(wanted.prompts) * wanted.n
        self._as_openai = self._profile.as_openai
        self._bytes_of = tokenizer.token_bytes.__getitem__
        skipped = tokenizer.special_ids if ask.skip_special_tokens else frozenset()
        self._text_offsets = [
            render.TextOffsets(self._bytes_of, skipped) for _ in range(self._num_choices)
        ]
        self._reply = render.Reply(
            form.make_id(uuid.uuid4().hex),
            int(time.time()),
            self._profile.canonical,
            _fingerprint(wanted.model_hash) if self._as_openai else "",
        )

    def body(self) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [
            render.ReplyChoice(
                whole.index,
                whole.text,
                whole.finish_reason or "",
                self._logprobs(whole.index, whole.logprobs),
            )
            for whole in gather(self._stream.deltas())
        ]
        body = self._form.body(self._reply, choices, self._usage())
        return body if self._profile.logprobs_key else render.without_extras(body)

    def events(self, wording: Wording) -> Iterator[bytes]:
        """Yield the server-sent events; everything that waits goes out as one piece."""
        chunks = self._form.chunks(self._reply, self._ask.include_usage, self._profile.logprobs_key)
        if self._ask.continuous_usage:
            chunks.show_usage(self._usage())
        # An empty piece still sends the headers: the request is accepted, and its status is final.
        yield b"".join(chunks.opening(i) for i in range(self._num_choices))
        try:
            for deltas in self._stream.deltas():
                if self._ask.continuous_usage:
                    chunks.show_usage(self._usage())
                yield b"".join(self._event(chunks, delta) for delta in deltas) or chunks.heartbeat()
        except Cancelled:
            return
        except ApiError as error:
            rendered = DIALECTS[self._profile.dialect](error, wording)
            yield render.error_event(rendered.body)
            return
        except Exception:
            self._stream.fail("internal_error")  # or closing would call it the caller's doing
            raise
        yield (chunks.usage(self._usage()) if self._ask.include_usage else b"") + render.DONE

    def _event(self, chunks: render.Chunks, delta: Delta) -> bytes:
        event = b""
        if delta.text or delta.logprobs:
            event = chunks.content(
                delta.index, delta.text, self._logprobs(delta.index, delta.logprobs)
            )
        if delta.finish_reason:
            event += chunks.finish(delta.index, delta.finish_reason)
        return event

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._ask.logprobs is None:
            return None
        return self._form.logprobs(
            entries, self._bytes_of, self._text_offsets[index], self._as_openai
        )

    def _usage(self) -> render.TokenUsage:
        stream = self._stream
        return render.TokenUsage(
            stream.prompt_tokens, stream.completion_tokens, stream.cached_tokens
        )
