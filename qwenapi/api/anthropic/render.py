"""Messages in Anthropic's words: content blocks, their stream events, and whole bodies.

Pure. A whole answer's content is its stream's events folded, so the two cannot differ. The order of
events is Anthropic's, which its clients rely on:

    message_start, ping, { content_block_start, content_block_delta …, content_block_stop } …,
    message_delta, message_stop          ping in between as a sign of life, error instead of the end
"""

import base64
import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from qwenapi.text.output.events import (
    Arguments,
    CallFinished,
    CallStarted,
    Event,
    Reasoning,
    Text,
)
from qwenapi.text.output.object_text import ObjectText, closed_object

Payload = Mapping[str, Any]

PING: Payload = {"type": "ping"}
MESSAGE_STOP: Payload = {"type": "message_stop"}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass(frozen=True)
class MessageUsage:
    """Tokens of one message; `thinking_tokens` None: thoughts were not told from content."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    thinking_tokens: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """Return the counts by Anthropic's names; what the prefix cache had is no input there."""
        body: dict[str, Any] = {
            "input_tokens": self.prompt_tokens - self.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.cached_tokens,
            "output_tokens": self.completion_tokens,
        }
        if self.thinking_tokens is not None:
            body["output_tokens_details"] = {"thinking_tokens": self.thinking_tokens}
        return body


class ContentBlocks:
    """The content blocks that an output's events become, as the stream's payloads.

    A thought's signature is a digest of it: clients send it back and it is not looked at. With
    `shows_thinking` off a thought is its signature alone, as with Anthropic's display "omitted".
    """

    def __init__(self, *, shows_thinking: bool = True) -> None:
        self._shows_thinking = shows_thinking
        self._open = ""  # the type of the block that goes on
        self._index = -1
        self._digest = hashlib.sha256()
        self._input = ObjectText()

    def push(self, event: Event) -> Iterator[Payload]:
        """Yield what a stream says of one event."""
        match event:
            case Text(text):
                if self._open != "text":
                    yield from self._start({"type": "text", "text": ""})
                yield self._delta("text_delta", text=text)
            case Reasoning(text):
                if self._open != "thinking":
                    self._digest = hashlib.sha256()
                    yield from self._start({"type": "thinking", "thinking": "", "signature": ""})
                self._digest.update(text.encode("utf-8", "surrogatepass"))
                if self._shows_thinking:
                    yield self._delta("thinking_delta", thinking=text)
            case CallStarted(_, name):
                self._input = ObjectText()
                id_ = f"toolu_{uuid.uuid4().hex[:24]}"
                yield from self._start({"type": "tool_use", "id": id_, "name": name, "input": {}})
            case Arguments(_, fragment):
                if piece := self._input.push(fragment):
                    yield self._delta("input_json_delta", partial_json=piece)
            case CallFinished():
                yield from self.finish()

    def finish(self) -> Iterator[Payload]:
        """Yield the end of the block that is open, if one is."""
        if self._open == "thinking":
            signature = base64.b64encode(self._digest.digest()).decode()
            yield self._delta("signature_delta", signature=signature)
        if self._open:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = ""

    def _start(self, block: dict[str, Any]) -> Iterator[Payload]:
        yield from self.finish()
        self._open = block["type"]
        self._index += 1
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, kind: str, **more: str) -> Payload:
        delta = {"type": kind, **more}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def fold_content(payloads: Iterable[Payload]) -> list[dict[str, Any]]:
    """Return the content blocks that a stream's payloads of them add up to."""
    blocks: list[dict[str, Any]] = []
    parts: list[dict[str, list[str]]] = []
    for payload in payloads:
        if payload["type"] == "content_block_start":
            blocks.append(dict(payload["content_block"]))
            parts.append({})
        elif payload["type"] == "content_block_delta":
            for key, piece in payload["delta"].items():
                if key != "type":
                    parts[-1].setdefault(key, []).append(piece)
    for block, pieces in zip(blocks, parts, strict=True):
        joined = {key: "".join(some) for key, some in pieces.items()}
        if block["type"] == "tool_use":
            block["input"] = orjson.Fragment(closed_object(joined.get("partial_json", "")))
        else:
            block |= joined
    return blocks


def message(
    id_: str,
    model: str,
    usage: MessageUsage,
    content: list[dict[str, Any]] | None = None,
    ending: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Return a message's body: whole with an ending as `stop` makes it, else one that begins."""
    return {
        "id": id_,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content or [],
        **(ending or {"stop_reason": None, "stop_sequence": None}),
        "usage": usage.body,
    }


def stop(finish_reason: str | None, stop_string: str | None) -> dict[str, str | None]:
    """Return why a message ended; a call goes before the stop sequence that ended its text."""
    reason = _STOP_REASONS[finish_reason or "stop"]
    if reason == "end_turn" and stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_string}
    return {"stop_reason": reason, "stop_sequence": None}


def message_start(body: Payload) -> Payload:
    """Return a stream's first payload; its input tokens are known, what is cached is not yet."""
    return {"type": "message_start", "message": body}


def message_delta(ending: Mapping[str, str | None], usage: MessageUsage) -> Payload:
    """Return the payload that says why the message ended, and all its counts."""
    return {"type": "message_delta", "delta": ending, "usage": usage.body}
