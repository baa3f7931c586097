"""Answers in OpenAI's words: JSON bodies, and the server-sent events of a stream.

Pure. A stream's events are bytes around the text: what stays the same is built once per request, so
that one token costs a concatenation. What the browser document's decoder needs holds: `data: `
with a space, one event a line, a role-only first event, beats that are events with an empty delta,
never a comment, an id or an event line.
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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

DONE = b"data: [DONE]\n\n"

ReasoningField = Literal["both", "reasoning_content", "reasoning"]


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
class ChoiceIds:
    """The ids of a choice and of its prompt, for a caller who asked for them."""

    prompt: Sequence[int]
    output: Sequence[int]


@dataclass(frozen=True)
class ReplyChoice:
    """One finished choice; `logprobs` as `chat_logprobs` or `completion_logprobs` made it."""

    index: int
    text: str
    finish_reason: str
    logprobs: dict[str, Any] | None = None
    ids: ChoiceIds | None = None


@dataclass(frozen=True)
class MessageChoice:
    """One finished choice of a chat; `message` as `chat_message` made it."""

    index: int
    message: dict[str, Any]
    finish_reason: str
    logprobs: dict[str, Any] | None = None
    ids: ChoiceIds | None = None


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
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def show_usage(self, usage: TokenUsage) -> None:
        """Let the events from now on say the counts so far, as vLLM's do when asked to."""
        self._tail = b',"usage":' + orjson.dumps(usage_body(usage)) + b"}\n\n"

    @abstractmethod
    def opening(self, index: int, prompt_ids: Sequence[int] | None = None) -> bytes:
        """Return the choice's first event, or nothing where the interface has none; its prompt's
        ids are told in it.
        """

    @abstractmethod
    def content(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> bytes:
        """Return an event of new text, and its tokens' ids for who wants them."""

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
        self,
        index: int,
        payload: bytes,
        logprobs: bytes = b"null",
        reason: bytes = b"null",
        token_ids: Sequence[int] | None = None,
        beside: bytes = b"",
    ) -> bytes:
        """Return one event; `beside` stands beside its choices."""
        extra = b'"logprobs":%b,' % logprobs if self._logprobs_key else b""
        if token_ids is not None:
            extra += b'"token_ids":%b,' % orjson.dumps(token_ids)
        values = (self._head, index, payload, extra, reason, beside, self._tail)
        return b'%b{"index":%d,%b,%b"finish_reason":%b}]%b%b' % values


class ChatChunks(Chunks):
    """Events of a streamed chat completion; the first of a choice only names the role."""

    KIND = "chat.completion.chunk"
    EMPTY = b'"delta":{}'

    def opening(self, index: int, prompt_ids: Sequence[int] | None = None) -> bytes:
        beside = b"" if prompt_ids is None else b',"prompt_token_ids":' + orjson.dumps(prompt_ids)
        return self._event(index, b'"delta":{"role":"assistant","content":""}', beside=beside)

    def content(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> bytes:
        return self.delta(index, {"content": text}, logprobs, token_ids)

    def delta(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> bytes:
        """Return an event of a delta of any keys."""
        payload = b'"delta":' + orjson.dumps(delta)
        return self._event(index, payload, orjson.dumps(logprobs), token_ids=token_ids)


class CompletionChunks(Chunks):
    """Events of a streamed raw completion, which has no role to name."""

    KIND = "text_completion"
    EMPTY = b'"text":""'

    def opening(self, index: int, prompt_ids: Sequence[int] | None = None) -> bytes:
        if prompt_ids is None:
            return b""
        prompt = b',"prompt_token_ids":' + orjson.dumps(prompt_ids)
        return self._event(index, self.EMPTY + prompt)

    def content(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> bytes:
        payload = b'"text":' + orjson.dumps(text)
        return self._event(index, payload, orjson.dumps(logprobs), token_ids=token_ids)


def chat_id(name: str) -> str:
    """Return the public id of a chat completion."""
    return f"chatcmpl-{name}"


def completion_id(name: str) -> str:
    """Return the public id of a raw completion."""
    return f"cmpl-{name}"


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
        | ({"token_ids": choice.ids.output} if choice.ids else {})
        for choice in choices
    ]
    prompt = {"prompt_token_ids": choices[0].ids.prompt} if choices and choices[0].ids else {}
    return _body(reply, "chat.completion", rendered, usage) | prompt


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
        | (
            {"prompt_token_ids": choice.ids.prompt, "token_ids": choice.ids.output}
            if choice.ids
            else {}
        )
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
