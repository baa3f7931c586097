"""Answers in OpenAI's words: JSON bodies, and the server-sent events of a stream.

Pure. A stream's events are bytes around the text: what stays the same is built once per request, so
that one token costs a concatenation. What the browser document's decoder needs holds: `data: `
with a space, one event a line, a role-only first event, beats that are events with an empty delta,
never a comment, an id or an event line.
"""

import codecs
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import orjson

from qwenapi.text.output.events import (
    Arguments,
    CallStarted,
    Event,
    ParsedOutput,
    Reasoning,
    Text,
)
from workers.wire.protocol import TokenLogprob

DONE = b"data: [DONE]\n\n"
LOWEST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's own stand-in

ReasoningField = Literal["both", "reasoning_content", "reasoning"]
TokenBytesOf = Callable[[int], bytes]
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True)
class Reply:
    """What all parts of one answer share. `created` is in seconds since 1970.

    With a `system_fingerprint` bodies also have the other keys that OpenAI's schemas require and
    the documents do not print: `refusal`.
    """

    id: str
    created: int
    model: str
    system_fingerprint: str = ""

    @property
    def head(self) -> dict[str, Any]:
        """Return what every body and event has of it."""
        head: dict[str, Any] = {"created": self.created, "model": self.model}
        return head | (
            {"system_fingerprint": self.system_fingerprint} if self.system_fingerprint else {}
        )


@dataclass(frozen=True)
class ReplyChoice:
    """One finished choice; `logprobs` as `chat_logprobs` or `completion_logprobs` made it."""

    index: int
    text: str
    finish_reason: str
    logprobs: dict[str, Any] | None = None


@dataclass(frozen=True)
class MessageChoice:
    """One finished choice of a chat; `message` as `chat_message` made it."""

    index: int
    message: dict[str, Any]
    finish_reason: str
    logprobs: dict[str, Any] | None = None


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one request; `reasoning_tokens` None: thoughts were not told from content."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int | None = None


class Chunks(ABC):
    """The events of one streamed answer. If usage was asked for, the others say they have none."""

    KIND: ClassVar[str]
    EMPTY: ClassVar[bytes]  # what an event without text holds

    def __init__(
        self, reply: Reply, include_usage: bool = False, logprobs_key: bool = True
    ) -> None:
        shared = {"id": reply.id, "object": self.KIND, **reply.head}
        self._logprobs_key = logprobs_key
        self._head = b"data: " + orjson.dumps(shared)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def show_usage(self, usage: TokenUsage) -> None:
        """Let the events from now on say the counts so far, as vLLM's do when asked to."""
        self._tail = b'],"usage":' + orjson.dumps(usage_body(usage)) + b"}\n\n"

    @abstractmethod
    def opening(self, index: int) -> bytes:
        """Return the choice's first event, or nothing where the interface has none."""

    @abstractmethod
    def content(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> bytes:
        """Return an event of new text."""

    def finish(self, index: int, reason: str) -> bytes:
        """Return the choice's last event."""
        return self._event(index, self.EMPTY, reason=orjson.dumps(reason))

    def heartbeat(self) -> bytes:
        """Return an event that says nothing, for proxies that count silence."""
        return self._event(0, self.EMPTY)

    def usage(self, usage: TokenUsage) -> bytes:
        """Return the event after the last choice of a caller that asked for usage."""
        return self._head + b'],"usage":' + orjson.dumps(usage_body(usage)) + b"}\n\n"

    def _event(
        self, index: int, payload: bytes, logprobs: bytes = b"null", reason: bytes = b"null"
    ) -> bytes:
        extra = b'"logprobs":%b,' % logprobs if self._logprobs_key else b""
        values = (self._head, index, payload, extra, reason, self._tail)
        return b'%b{"index":%d,%b,%b"finish_reason":%b}%b' % values


class ChatChunks(Chunks):
    """Events of a streamed chat completion; the first of a choice only names the role."""

    KIND = "chat.completion.chunk"
    EMPTY = b'"delta":{}'

    def opening(self, index: int) -> bytes:
        return self._event(index, b'"delta":{"role":"assistant","content":""}')

    def content(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> bytes:
        delta = b'"delta":{"content":' + orjson.dumps(text) + b"}"
        return self._event(index, delta, orjson.dumps(logprobs))

    def delta(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None
    ) -> bytes:
        """Return an event of a delta of any keys."""
        return self._event(index, b'"delta":' + orjson.dumps(delta), orjson.dumps(logprobs))


class CompletionChunks(Chunks):
    """Events of a streamed raw completion, which has no role to name."""

    KIND = "text_completion"
    EMPTY = b'"text":""'

    def opening(self, index: int) -> bytes:
        return b""

    def content(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> bytes:
        return self._event(index, b'"text":' + orjson.dumps(text), orjson.dumps(logprobs))


def chat_id(hex32: str) -> str:
    """Return the public id of a chat completion."""
    return f"chatcmpl-{hex32}"


def completion_id(hex32: str) -> str:
    """Return the public id of a raw completion."""
    return f"cmpl-{hex32}"


def chat_body(reply: Reply, choices: Sequence[MessageChoice], usage: TokenUsage) -> dict[str, Any]:
    """Return a whole chat completion."""
    refusal = {"refusal": None} if reply.system_fingerprint else {}
    rendered = [
        {
            "index": choice.index,
            "message": choice.message | refusal,
            "logprobs": choice.logprobs,
            "finish_reason": choice.finish_reason,
        }
        for choice in choices
    ]
    return _body(reply, "chat.completion", rendered, usage)


def completion_body(
    reply: Reply, choices: Sequence[ReplyChoice], usage: TokenUsage
) -> dict[str, Any]:
    """Return a whole raw completion."""
    rendered = [
        {
            "text": choice.text,
            "index": choice.index,
            "logprobs": choice.logprobs,
            "finish_reason": choice.finish_reason,
        }
        for choice in choices
    ]
    return _body(reply, "text_completion", rendered, usage)


def chat_message(output: ParsedOutput, reasoning: Mapping[str, str]) -> dict[str, Any]:
    """Return an assistant's message; `reasoning` as `reasoning_keys` made it."""
    message: dict[str, Any] = {"role": "assistant", "content": output.content}
    message |= reasoning
    if output.calls:
        message["content"] = output.content or None
        message["tool_calls"] = [
            _call(call_id(), call.name, call.arguments) for call in output.calls
        ]
    return message


def reasoning_keys(text: str, field: ReasoningField) -> dict[str, str]:
    """Return a thought under the names of the setting `reasoning_field`; nothing of nothing."""
    names = ("reasoning_content", "reasoning") if field == "both" else (field,)
    return {name: text for name in names} if text else {}


def event_delta(event: Event, field: ReasoningField) -> dict[str, Any] | None:
    """Return what a stream says of one event of the output, None where that is nothing."""
    match event:
        case Text(text):
            return {"content": text}
        case Reasoning(text):
            return dict(reasoning_keys(text, field))
        case CallStarted(index, name):
            return {"tool_calls": [{"index": index} | _call(call_id(), name, "")]}
        case Arguments(index, fragment):
            return {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
    return None


def call_id() -> str:
    """Return a new id of a tool call."""
    return f"call_{uuid.uuid4().hex[:24]}"


def usage_body(usage: TokenUsage) -> dict[str, Any]:
    """Return OpenAI's count of tokens."""
    body: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens is not None:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return body


def error_event(body: dict[str, Any]) -> bytes:
    """Return the event that ends a stream which failed; no `[DONE]` follows it."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def without_extras(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body with the keys the news document prints, and no others that say nothing."""
    choices = [
        {k: v for k, v in choice.items() if k != "logprobs" or v} for choice in body["choices"]
    ]
    usage = {k: v for k, v in body["usage"].items() if not k.endswith("_details")}
    return body | {"choices": choices, "usage": usage}


def chat_logprobs(
    entries: Sequence[TokenLogprob], bytes_of: TokenBytesOf, *, has_refusal: bool = False
) -> dict[str, Any]:
    """Return log-probabilities in the chat format."""
    content = [
        _token(entry.token_id, entry.logprob, bytes_of)
        | {
            "top_logprobs": [
                _token(id_, logprob, bytes_of)
                for id_, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
            ]
        }
        for entry in entries
    ]
    return {"content": content} | ({"refusal": None} if has_refusal else {})


class TextOffsets:
    """Where each token of one choice begins in its text, in characters.

    A character cut between two tokens begins with the first. Ids of `skipped` are not in the text.
    """

    def __init__(self, bytes_of: TokenBytesOf, skipped: Container[int] = frozenset()) -> None:
        self._bytes_of = bytes_of
        self._skipped = skipped
        self._utf8 = _Utf8Decoder("replace")
        self._num_characters = 0

    def next(self, token_id: int) -> int:
        """Return the offset of one more token."""
        offset = self._num_characters + bool(self._utf8.getstate()[0])
        if token_id not in self._skipped:
            self._num_characters += len(self._utf8.decode(self._bytes_of(token_id)))
        return offset


def completion_logprobs(
    entries: Sequence[TokenLogprob], bytes_of: TokenBytesOf, offsets: TextOffsets
) -> dict[str, Any]:
    """Return log-probabilities in the older format; `offsets` know the tokens before these."""
    return {
        "tokens": [_key(entry.token_id, bytes_of) for entry in entries],
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
        "top_logprobs": [_alternatives(entry, bytes_of) for entry in entries],
        "text_offset": [offsets.next(entry.token_id) for entry in entries],
    }


def model_card(name: str, *, root: str, created: int, max_model_len: int) -> dict[str, Any]:
    """Return one entry of `GET /v1/models`."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "qwenapi",
        "root": root,
        "parent": None,
        "max_model_len": max_model_len,
    }


def model_list(cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the body of `GET /v1/models`."""
    return {"object": "list", "data": list(cards)}


def _body(
    reply: Reply, kind: str, choices: list[dict[str, Any]], usage: TokenUsage
) -> dict[str, Any]:
    return {
        "id": reply.id,
        "object": kind,
        **reply.head,
        "choices": choices,
        "usage": usage_body(usage),
    }


def _call(id_: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _token(token_id: int, logprob: float, bytes_of: TokenBytesOf) -> dict[str, Any]:
    piece = bytes_of(token_id)
    return {
        "token": piece.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(piece),
    }


def _alternatives(entry: TokenLogprob, bytes_of: TokenBytesOf) -> dict[str, float]:
    """Return the best tokens and, as OpenAI does, the chosen one even if it is none of them."""
    pairs = [*zip(entry.top_ids, entry.top_logprobs, strict=True), (entry.token_id, entry.logprob)]
    return {_key(id_, bytes_of): _finite(logprob) for id_, logprob in pairs}


def _key(token_id: int, bytes_of: TokenBytesOf) -> str:
    """Return a token's text; part of a character in hex, as keys that read U+FFFD would collide."""
    piece = bytes_of(token_id)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
