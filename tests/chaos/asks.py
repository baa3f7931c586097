"""What chaos asks for: requests of every dialect, and what their whole answers are.

An answer is its texts and its counts of tokens, undisturbed. Where a caller may give no seed the
stub begins its text at any token of the prompt's: then it must be a part of a longer one.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.chaos.accounts import COMPLETION, PROMPT, Range, Told
from tests.chaos.world import World, error_of

CHAT = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SLOWLY = "slowly"
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
# Who leaves asks under this name: the accounts of the other profiles stay exact.
BROWSER = {"model": "MyCoder", "ignore_eos": True, "temperature": 0} | STREAM
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"],
          "additionalProperties": False}  # fmt: skip


class NotWhole(Exception):
    """A stream that ended with an error that it says, or a refusal; its words are the error."""


@dataclass
class Ask:
    """A request, and how its answer is read; `expected` is what it says, undisturbed."""

    name: str
    path: str
    body: dict[str, Any]
    read: Callable[[requests.Response], Iterator[tuple[str, str]]]
    is_seeded: bool = True
    profile: str = "openai"
    expected: dict[str, str] = field(default_factory=dict)

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def max_tokens(self) -> int:
        """Return how many tokens all choices have at most."""
        body = self.body
        return int(body.get("max_output_tokens") or body["max_tokens"]) * int(body.get("n", 1))

    def told(self, texts: dict[str, str] | None) -> Told:
        """Return what a caller knows of the tokens, of a whole answer or of one that broke off."""
        if texts is not None:
            counts = (Range.exactly(int(texts[name])) for name in (PROMPT, COMPLETION))
            return Told(self.profile, True, *counts)
        prompt = int(self.expected[PROMPT])
        return Told(self.profile, False, Range(0, prompt), Range(0, self.max_tokens))

    def answer(self, world: World, **options: Any) -> dict[str, str]:
        """Return the texts of a whole answer, by choice, and its counts of tokens."""
        tenant = options.pop("tenant", "a")
        with world.post(self.path, self.body, tenant, stream=True, **options) as response:
            if response.status_code != 200:
                raise NotWhole(error_of(response))
            texts: dict[str, str] = {}
            for key, text in self.read(response):
                texts[key] = texts.get(key, "") + text
            return texts

    def matches(self, texts: dict[str, str], *, is_stub: bool) -> bool:
        """Return whether these are the answer's texts: none lost, doubled or another's."""
        if self.is_seeded or not is_stub:
            return texts == self.expected
        rest = {key: text for key, text in texts.items() if key not in ("0", COMPLETION)}
        said = texts.get("0", "").strip("\ufffd")  # half a character, where it begins or ends
        kept = self.expected["0"]
        return len(said) > 10 and said in kept and all(self.expected[k] == rest[k] for k in rest)

    def learn(self, world: World) -> None:
        """Ask while nothing disturbs; what a seed does not settle for so long that all is in it."""
        if self.is_seeded or world.model != "stub":
            self.expected = self.answer(world)
            return
        key = "max_output_tokens" if "max_output_tokens" in self.body else "max_tokens"
        kept, self.body = self.body, self.body | {key: 400}
        self.expected = self.answer(world)
        self.body = kept


def openai_events(response: requests.Response) -> Iterator[Any]:
    last = None
    for line in response.iter_lines():
        if line:
            last = line.removeprefix(b"data: ")
            if last != b"[DONE]":
                event = json.loads(last)
                if "error" in event:
                    raise NotWhole(str(event["error"].get("code")))
                yield event
    if last != b"[DONE]":
        raise ConnectionError("the stream ended without [DONE]")


def read_chat(response: requests.Response) -> Iterator[tuple[str, str]]:
    is_stream = "event-stream" in response.headers["Content-Type"]
    for event in openai_events(response) if is_stream else [response.json()]:
        for choice in event["choices"]:
            said = choice.get("delta") or choice.get("message") or choice
            index = choice["index"]
            yield f"{index}", said.get("content") or said.get("text") or ""
            for call in said.get("tool_calls") or []:
                function = call.get("function", {})
                yield (
                    f"{index} call {call.get('index', 0)}",
                    ((function.get("name") or "") + (function.get("arguments") or "")),
                )
            if choice.get("finish_reason"):
                yield f"{index} end", choice["finish_reason"]
        if usage := event.get("usage"):
            yield from counts_of(usage)


def read_slowly(response: requests.Response) -> Iterator[tuple[str, str]]:
    for piece in read_chat(response):
        time.sleep(0.02)
        yield piece


def counts_of(usage: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the counts of tokens, whatever a dialect calls them."""
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    yield PROMPT, f"{prompt + usage.get('cache_read_input_tokens', 0)}"
    yield COMPLETION, f"{usage.get('completion_tokens', usage.get('output_tokens'))}"


def read_messages(response: requests.Response) -> Iterator[tuple[str, str]]:
    if "event-stream" not in response.headers["Content-Type"]:
        body = response.json()
        yield from ((f"{i}", block.get("text", "")) for i, block in enumerate(body["content"]))
        yield "end", body["stop_reason"]
        yield from counts_of(body["usage"])
        return
    kind = ""
    for line in response.iter_lines():
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line.removeprefix(b"data: "))
        kind = event["type"]
        if kind == "error":
            raise NotWhole(event["error"]["type"])
        if kind == "content_block_delta":
            yield f"{event['index']}", event["delta"].get("text", "")
        if kind == "message_delta":
            yield "end", event["delta"]["stop_reason"]
            yield from counts_of(event["usage"])
    if kind != "message_stop":
        raise ConnectionError("the stream ended without message_stop")


def read_response(response: requests.Response) -> Iterator[tuple[str, str]]:
    if "event-stream" not in response.headers["Content-Type"]:
        body = response.json()
        if body["status"] not in ("completed", "incomplete"):
            raise NotWhole(f"{body['status']} {(body.get('error') or {}).get('code')}")
        for item in body["output"]:
            yield from (("0", part.get("text", "")) for part in item.get("content") or [])
        yield from counts_of(body["usage"])
        return
    kind = ""
    for line in response.iter_lines():
        if line.startswith(b"data: "):
            event = json.loads(line.removeprefix(b"data: "))
            kind = event["type"]
            if kind == "response.output_text.delta":
                yield "0", event["delta"]
            if kind in ("error", "response.failed"):
                error = event.get("error") or event.get("response", {}).get("error") or event
                raise NotWhole(f"{kind} {error.get('code')}")
            if kind in ("response.completed", "response.incomplete"):
                yield from counts_of(event["response"]["usage"])
    if kind not in ("response.completed", "response.incomplete"):
        raise ConnectionError("the stream ended in its middle")


def every_ask(model: str) -> list[Ask]:
    """Return requests of all dialects; on a model the likeliest tokens, on the stub by seed."""
    named = {"model": "qwen-demo", "temperature": 0}
    said = [{"role": "user", "content": "chaos 数据 🙂 one two three"}]
    asks = []
    for seed in range(3):
        for streamed in (STREAM, {"stream": False}):
            body = named | {"messages": said, "seed": seed, "ignore_eos": True} | streamed
            asks.append(Ask("chat", CHAT, body | {"max_tokens": 60 + 50 * seed}, read_chat))
            choices = {"n": 2, "max_tokens": 50, "logprobs": True}
            asks.append(Ask("chat n=2", CHAT, body | choices, read_chat))
        raw = named | {"prompt": "one two 三", "seed": seed, "max_tokens": 70} | STREAM
        asks.append(Ask("completion", "/v1/completions", raw, read_chat))
    tools = named | {"messages": said, "seed": 5, "max_tokens": 40, "tools": [TOOL]}
    asks.append(Ask("tools", CHAT, tools | STREAM, read_chat))
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    schema = named | {"messages": said, "seed": 6, "max_tokens": 30, "response_format": shape}
    asks.append(Ask("schema", CHAT, schema, read_chat))
    for stream in (True, False):
        message = named | {"messages": said, "max_tokens": 40, "stream": stream}
        asks.append(Ask("message", "/v1/messages", message, read_messages, False, "anthropic"))
        response = named | {"input": "one two three", "max_output_tokens": 30, "stream": stream,
                            "store": True}  # fmt: skip
        asks.append(Ask("response", "/v1/responses", response, read_response, False))
    guide = {"model": "Qwen3-32B", "temperature": 0, "messages": said, "seed": 1, "max_tokens": 40}
    asks.append(Ask("guide", CHAT, guide | STREAM, read_chat, profile="guide"))
    slowly = BROWSER | {"messages": said, "seed": 1, "max_tokens": 40}
    asks.append(Ask(SLOWLY, CHAT, slowly, read_slowly, profile="browser"))
    return asks
