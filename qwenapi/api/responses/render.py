"""Responses in OpenAI's words: output items, their stream events, and whole bodies.

Pure. A whole answer's items are those that its stream's events end with, so the two cannot differ.
The order of events is OpenAI's, which its clients rely on; each is numbered:

    response.created, response.in_progress,
    { response.output_item.added, [ response.content_part.added ], … .delta …, … .done,
      [ response.content_part.done ], response.output_item.done } …,
    response.completed | response.incomplete       error, response.failed instead where it broke

As a sign of life response.in_progress comes again.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenapi.text.output.events import (
    Arguments,
    CallFinished,
    CallStarted,
    Event,
    Reasoning,
    Text,
)

Payload = dict[str, Any]

# Of an item's kind: its part, and what its deltas are called.
_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
_DELTAS = {**_PARTS, "function_call": "function_call_arguments"}


@dataclass(frozen=True)
class ResponseUsage:
    """Tokens of one response."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def body(self) -> Payload:
        """Return the counts by the names they have in responses."""
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class OutputItems:
    """The items that an output's events become, as the stream's payloads; `done` has the items.

    `new_id` names an item by its type. `seal` hides a thought from clients that keep it for later.
    """

    def __init__(
        self, new_id: Callable[[str], str], seal: Callable[[str], str] | None = None
    ) -> None:
        self._new_id = new_id
        self._seal = seal
        self._open: Payload = {}  # the item that goes on
        self._pieces: list[str] = []
        self._logprobs: list[Payload] = []
        self.done: list[Payload] = []

    def push(self, event: Event, logprobs: Sequence[Payload] = ()) -> Iterator[Payload]:
        """Yield what a stream says of one event; `logprobs` are of a text's tokens."""
        match event:
            case Text(text):
                yield from self._go_on("message", role="assistant", content=[])
                self._logprobs += logprobs
                yield self._delta(text, **_part_place(), logprobs=list(logprobs))
            case Reasoning(text):
                sealed = {"encrypted_content": None}
                yield from self._go_on("reasoning", summary=[], content=[], **sealed)
                yield self._delta(text, **_part_place())
            case CallStarted(_, name):
                yield from self._close("completed")
                call_id = f"call_{uuid.uuid4().hex[:24]}"
                yield from self._go_on("function_call", call_id=call_id, name=name, arguments="")
            case Arguments(_, fragment):
                yield self._delta(fragment)
            case CallFinished():
                yield from self._end("completed")

    def finish(self, *, is_cut: bool) -> Iterator[Payload]:
        """Yield the end of the item that is open; an answer without any is an empty message."""
        says_something = any(
            item["type"] != "reasoning" for item in (*self.done, self._open) if item
        )
        if not is_cut and not says_something:
            yield from self._go_on("message", role="assistant", content=[])
        yield from self._close("incomplete" if is_cut else "completed")

    def _go_on(self, kind: str, **fields: Any) -> Iterator[Payload]:
        """Yield the beginning of an item, unless one of its kind is open."""
        if self._open.get("type") == kind:
            return
        yield from self._close("completed")
        head = {"id": self._new_id(kind), "type": kind, "status": "in_progress"}
        self._open, self._pieces, self._logprobs = head | fields, [], []
        yield {
            "type": "response.output_item.added",
            "output_index": len(self.done),
            "item": dict(self._open),
        }
        if kind in _PARTS:
            yield self._event("response.content_part.added", **_part_place(), part=self._part(""))

    def _close(self, status: str) -> Iterator[Payload]:
        """Yield the end of the open item; a call that is still open has not all its arguments."""
        if self._open:
            is_call = self._open["type"] == "function_call"
            yield from self._end("incomplete" if is_call else status)

    def _end(self, status: str) -> Iterator[Payload]:
        kind, text = self._open["type"], "".join(self._pieces)
        done = f"response.{_DELTAS[kind]}.done"
        if kind == "function_call":
            self._open["arguments"] = text
            yield self._event(done, name=self._open["name"], arguments=text)
        else:
            logprobs = {"logprobs": self._logprobs} if kind == "message" else {}
            yield self._event(done, **_part_place(), text=text, **logprobs)
            part = self._part(text)
            yield self._event("response.content_part.done", **_part_place(), part=part)
            self._open["content"] = [part]
            if kind == "reasoning" and self._seal is not None:
                self._open["encrypted_content"] = self._seal(text)
        item = self._open | {"status": status}
        yield {"type": "response.output_item.done", "output_index": len(self.done), "item": item}
        self.done.append(item)
        self._open = {}

    def _part(self, text: str) -> Payload:
        part: Payload = {"type": _PARTS[self._open["type"]], "text": text}
        if self._open["type"] == "message":
            part |= {"annotations": [], "logprobs": self._logprobs if text else []}
        return part

    def _delta(self, piece: str, **more: Any) -> Payload:
        self._pieces.append(piece)
        return self._event(f"response.{_DELTAS[self._open['type']]}.delta", delta=piece, **more)

    def _event(self, type_: str, **more: Any) -> Payload:
        place = {"item_id": self._open["id"], "output_index": len(self.done)}
        return {"type": type_, **place, **more}


def response_body(id_: str, created_at: int, model: str, told: Mapping[str, Any]) -> Payload:
    """Return a response that begins; `told` is what it says of its request."""
    return {
        "id": id_,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        **told,
    }


def ended(
    body: Payload, output: list[Payload], usage: ResponseUsage, *, is_cut: bool, now: int
) -> Payload:
    """Return a response that has ended, cut or not."""
    reason = {"reason": "max_output_tokens"} if is_cut else None
    return body | {
        "status": "incomplete" if is_cut else "completed",
        "completed_at": None if is_cut else now,
        "incomplete_details": reason,
        "output": output,
        "usage": usage.body,
    }


def failed(body: Payload, message: str) -> Payload:
    """Return a response that broke; what it had said is of no use."""
    return body | {"status": "failed", "error": {"code": "server_error", "message": message}}


def status_event(body: Payload) -> Payload:
    """Return the payload that tells what has become of a response."""
    return {"type": f"response.{body['status']}", "response": body}


def _part_place() -> dict[str, int]:
    """Return where in its item a part stands: each has one."""
    return {"content_index": 0}
