"""Load: the same requests to any OpenAI-compatible server, and what their callers feel.

Closed loop: a number of callers each send the next request when the last has ended. Threads and
plain sockets: the client must not be what is measured. Knows nothing of the server but its HTTP.
"""

import http.client
import json
import math
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "with",
    "on",
    "be",
    "at",
    "by",
    "this",
    "have",
    "from",
    "or",
    "one",
    "had",
    "but",
]
TIMEOUT_SECONDS = 600
# What a chat's text may come under; servers split thoughts off by either of the last two names.
TEXTS = ("content", "reasoning_content", "reasoning")


@dataclass(frozen=True)
class Load:
    """What every caller asks for; a chat's prompt only comes near `prompt_tokens` tokens.

    `extra_body` has fields that requests have beside those of this class.
    """

    url: str
    model: str
    endpoint: str = "completions"
    prompt_tokens: int = 128
    max_tokens: int = 64
    temperature: float = 0.0
    ignore_eos: bool = True
    api_key: str = field(default="", repr=False)
    vocabulary: int = 1000
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def body(self, seed: int) -> dict[str, Any]:
        """Return a request; equal seeds ask the same, different ones share no prefix."""
        chosen = random.Random(seed)
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            fields["ignore_eos"] = True
        fields |= self.extra_body
        if self.endpoint == "completions":
            ids = [chosen.randrange(self.vocabulary) for _ in range(self.prompt_tokens)]
            return fields | {"prompt": ids}
        text = " ".join(chosen.choice(WORDS) for _ in range(self.prompt_tokens))
        return fields | {"messages": [{"role": "user", "content": text}]}


@dataclass(frozen=True)
class RequestSample:
    """One request. Times in seconds; `gaps` between the arrivals of successive pieces of text."""

    ttft: float
    gaps: tuple[float, ...]
    output_tokens: int
    error: str = ""

    @property
    def time_per_output_token(self) -> float:
        """Return seconds a token after the first: what was written over the time it took."""
        return sum(self.gaps) / max(1, self.output_tokens - 1)


@dataclass(frozen=True)
class BenchResult:
    """One level of concurrency. Percentiles by the nearest-rank rule; times in milliseconds.

    `tpot_ms` are times per output token, one of each request; gaps are all gaps of all requests.
    """

    concurrency: int
    num_requests: int
    num_failed: int
    seconds: float
    output_tokens: int
    tokens_per_second: float
    ttft_ms: dict[str, float] = field(default_factory=dict)
    gap_ms: dict[str, float] = field(default_factory=dict)
    tpot_ms: dict[str, float] = field(default_factory=dict)
    errors: tuple[str, ...] = ()


def run(load: Load, concurrency: int, num_requests: int, first_seed: int = 0) -> BenchResult:
    """Send `num_requests` requests from `concurrency` callers and return what was measured."""
    seeds = iter(range(first_seed, first_seed + num_requests))
    lock = threading.Lock()
    samples: list[RequestSample] = []

    def call() -> None:
        while True:
            with lock:
                seed = next(seeds, None)
            if seed is None:
                return
            sample = _ask(load, seed)
            with lock:
                samples.append(sample)

    threads = [threading.Thread(target=call) for _ in range(concurrency)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _summary(samples, concurrency, time.perf_counter() - started)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile: what `share` of the sorted values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else 0.0


def fetch_json(url: str, path: str, api_key: str = "") -> Any:
    """Return what a server answers to GET; raise OSError, HTTPException or ValueError."""
    connection = _connect(url)
    try:
        connection.request("GET", path, headers=_authorization(api_key))
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise ValueError(f"status {response.status} of {path}: {body[:200]!r}")
        return json.loads(body)
    finally:
        connection.close()


def _ask(load: Load, seed: int) -> RequestSample:
    started = time.perf_counter()
    try:
        arrivals, output_tokens = _stream(load, seed)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return RequestSample(0.0, (), 0, f"{type(error).__name__}: {error}"[:200])
    if not arrivals:
        return RequestSample(0.0, (), 0, "no text arrived")
    if problem := _wrong_count(load, output_tokens):
        return RequestSample(0.0, (), 0, problem)
    gaps = tuple(later - earlier for earlier, later in zip(arrivals, arrivals[1:], strict=False))
    return RequestSample(arrivals[0] - started, gaps, output_tokens)


def _wrong_count(load: Load, output_tokens: int) -> str:
    """Say so where another number of tokens came than was asked for; a rate would tell nothing."""
    if not output_tokens:
        return "the server did not say in usage how many tokens it wrote"
    if load.ignore_eos and output_tokens != load.max_tokens:
        return f"{output_tokens} tokens came where {load.max_tokens} were asked for"
    return ""


def _stream(load: Load, seed: int) -> tuple[list[float], int]:
    """Return when each piece of text arrived, and the number of tokens the server counted."""
    connection = _connect(load.url)
    try:
        path = "/v1/chat/completions" if load.endpoint == "chat" else "/v1/completions"
        headers = {"Content-Type": "application/json"} | _authorization(load.api_key)
        connection.request("POST", path, json.dumps(load.body(seed)), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(200)!r}")
        return _read_events(response)
    finally:
        connection.close()


def _read_events(response: http.client.HTTPResponse) -> tuple[list[float], int]:
    arrivals: list[float] = []
    output_tokens, is_done = 0, False
    for event in _events(response):
        if event == b"[DONE]":
            is_done = True
            continue
        payload = json.loads(event)
        if "error" in payload:
            raise ValueError(f"error event: {payload['error']}")
        for choice in payload["choices"]:
            delta = choice.get("delta", {})
            if choice.get("text") or any(delta.get(name) for name in TEXTS):
                arrivals.append(time.perf_counter())
            is_done = is_done or choice.get("finish_reason") is not None
        output_tokens = (payload.get("usage") or {}).get("completion_tokens", output_tokens)
    if not is_done:
        raise ValueError("the stream ended without a finish_reason and without [DONE]")
    return arrivals, output_tokens


def _events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    buffer = b""
    while piece := response.read1(65536):
        *whole, buffer = (buffer + piece).split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: "):
                yield event[6:]


def _summary(samples: Sequence[RequestSample], concurrency: int, seconds: float) -> BenchResult:
    good = [sample for sample in samples if not sample.error]
    gaps = [gap for sample in good for gap in sample.gaps]
    output_tokens = sum(sample.output_tokens for sample in good)
    return BenchResult(
        concurrency=concurrency,
        num_requests=len(samples),
        num_failed=len(samples) - len(good),
        seconds=round(seconds, 3),
        output_tokens=output_tokens,
        tokens_per_second=round(output_tokens / seconds, 2),
        ttft_ms=_percentiles([sample.ttft for sample in good]),
        gap_ms=_percentiles(gaps),
        tpot_ms=_percentiles([sample.time_per_output_token for sample in good]),
        errors=tuple(sorted({sample.error for sample in samples if sample.error})),
    )


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {
        name: round(1000 * percentile(seconds, p), 3)
        for name, p in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_SECONDS)


def _authorization(api_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
