"""Callers that remember what they were told, for tests that compare it with the metrics store."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import requests

from qwenapi.errors import EngineFailed, InternalError, QueueFull
from tests.running_server import RunningServer, sse_events

Ending = Literal["whole", "failed", "refused", "cut", "lost"]

MODELS = {"openai": "qwen-demo", "guide": "Qwen3-32B", "browser": "MyCoder", "news": None}
PROMPT = "请分类这条新闻：央行宣布降息25个基点"
NEWS_IS_BUSY = "服务繁忙"


@dataclass(frozen=True)
class Told:
    """What one caller was told; of an answer that is not whole, the tokens that came at least."""

    profile: str
    ending: Ending
    failure: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_begun: bool = False  # the head of an answer came: the engines had accepted the request


@dataclass(frozen=True)
class Caller:
    """One request to be made. `tokens` and `prompt_tokens` are what a whole answer has where the
    interface does not say; after `cut_after` pieces, or seconds without a head, the caller leaves.
    """

    profile: str
    path: str
    body: Mapping[str, Any] = field(repr=False)
    tokens: int = 0
    prompt_tokens: int = 0
    cut_after: int = 0
    patience: float = 60

    def ask(self, server: RunningServer) -> Told:
        raw, url = b"", server.url + self.path
        try:
            with requests.post(url, json=self.body, stream=True, timeout=self.patience) as answer:
                try:
                    for piece in answer.iter_content(None):
                        raw += piece
                        if self.cut_after and raw.count(b"data: ") >= self.cut_after:
                            return self._broken("cut", raw)
                except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                    is_ours = self.patience < 60
                    return self._broken("cut" if is_ours else "lost", raw)
                return self._told(answer, raw)
        except requests.Timeout:
            return Told(self.profile, "cut")
        except requests.ConnectionError:
            return Told(self.profile, "lost")

    def _told(self, answer: requests.Response, raw: bytes) -> Told:
        if answer.status_code >= 500:
            return Told(self.profile, "failed", failure_in(raw.decode()))
        if answer.status_code >= 400:
            return Told(self.profile, "refused")
        if self.tokens:
            return Told(
                self.profile,
                "whole",
                completion_tokens=self.tokens,
                prompt_tokens=self.prompt_tokens,
            )
        if not self.body.get("stream"):
            return self._whole(json.loads(raw)["usage"])
        events = sse_events(raw)
        if events[-1] == "[DONE]":
            return self._whole(events[-2]["usage"])
        assert "error" in events[-1], events[-1]
        return Told(
            self.profile, "failed", failure_in(raw.decode()), completion_tokens=num_pieces(raw)
        )

    def _whole(self, usage: Mapping[str, int]) -> Told:
        return Told(
            self.profile,
            "whole",
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
        )

    def _broken(self, ending: Ending, raw: bytes) -> Told:
        return Told(self.profile, ending, completion_tokens=num_pieces(raw), is_begun=True)


def chat(profile: str, tokens: int, *, stream: bool = False, **how: Any) -> Caller:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens}
    if MODELS[profile]:
        body["model"] = MODELS[profile]
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Caller(profile, "/v1/chat/completions", body, **how)


def completions(tokens: int, *, stream: bool = False) -> Caller:
    """Return a request of two prompts with two choices each."""
    body = {"model": "qwen-demo", "prompt": ["ab cd", PROMPT], "n": 2, "max_tokens": tokens}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Caller("openai", "/v1/completions", body)


def coder(tokens: int, prompt_tokens: int, *, stream: bool) -> Caller:
    path = "/v1/code/chat_stream" if stream else "/v1/code/generate"
    return Caller("coder", path, {"prompt": PROMPT}, tokens=tokens, prompt_tokens=prompt_tokens)


def generate(tokens: int, prompt_tokens: int) -> Caller:
    body = {"prompt": PROMPT, "max_length": tokens, "num_return_sequences": 2}
    return Caller("qwen2", "/generate", body, tokens=2 * tokens, prompt_tokens=prompt_tokens)


BAD = (
    Caller("openai", "/v1/chat/completions", {"model": "qwen-demo", "messages": 5}),
    Caller("guide", "/v1/chat/completions", {"model": "Qwen3-32B"}),
    Caller("openai", "/v1/chat/completions", {"model": "nonesuch", "messages": []}),
    Caller("openai", "/v1/completions", {"model": "qwen-demo", "prompt": "far too long " * 20_000}),
    Caller("qwen2", "/generate", {}),
    Caller("coder", "/v1/code/chat_stream", {"prompt": ""}),
)


def num_pieces(raw: bytes) -> int:
    """Return how many events of a stream carry text: each is a token or more."""
    return raw.count(b'"content":"') - raw.count(b'"content":""')


def failure_in(text: str) -> str:
    """Return which failure a caller reads out of what it was told, in whichever dialect."""
    if QueueFull.sentence in text or NEWS_IS_BUSY in text:
        return "queue_full"
    if EngineFailed.sentence in text:
        return "engine_failed"
    return "internal_error" if InternalError.sentence in text else "unavailable"
