"""`qwenapi bench`: closed-loop load on any OpenAI-compatible server, and what its callers feel.

A number of callers each send the next request when the last has ended. Threads and plain sockets:
the client must not be what is measured. Knows nothing of the server but its HTTP.
"""

import argparse
import http.client
import json
import platform
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from rich.table import Table

WORDS = "the of and to in is that for it as with on be at by this have from or one had but".split()
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Load:
    """What every caller asks for. Chat prompts are of about, completion prompts of exactly
    `prompt_tokens` tokens.
    """

    url: str
    model: str
    endpoint: str = "completions"
    prompt_tokens: int = 128
    max_tokens: int = 64
    temperature: float = 0.0
    ignore_eos: bool = True
    api_key: str = ""
    vocabulary: int = 1000

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
        if self.endpoint == "completions":
            ids = [chosen.randrange(self.vocabulary) for _ in range(self.prompt_tokens)]
            return fields | {"prompt": ids}
        text = " ".join(chosen.choice(WORDS) for _ in range(self.prompt_tokens))
        return fields | {"messages": [{"role": "user", "content": text}]}


@dataclass(frozen=True)
class Sample:
    """One request. Times in seconds; `gaps` between the arrivals of successive pieces of text."""

    ttft: float
    gaps: tuple[float, ...]
    output_tokens: int
    error: str = ""


@dataclass(frozen=True)
class Result:
    """One level of concurrency. Percentiles by the nearest-rank rule; times in milliseconds."""

    concurrency: int
    num_requests: int
    num_failed: int
    seconds: float
    output_tokens: int
    tokens_per_second: float
    ttft_ms: dict[str, float] = field(default_factory=dict)
    gap_ms: dict[str, float] = field(default_factory=dict)
    errors: tuple[str, ...] = ()


def run(load: Load, concurrency: int, num_requests: int, first_seed: int = 0) -> Result:
    """Send `num_requests` requests from `concurrency` callers and return what was measured."""
    seeds = iter(range(first_seed, first_seed + num_requests))
    lock = threading.Lock()
    samples: list[Sample] = []

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
    """Return the nearest-rank percentile: the value that `share` of the sorted values do not
    exceed.
    """
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def table(results: Sequence[Result]) -> "Table":
    """Return the results as a table for a terminal."""
    from rich.table import Table

    shown = Table(box=None, title="tokens/s are of output; TTFT and gaps between tokens in ms")
    for name in (
        "streams",
        "sent",
        "failed",
        "tokens/s",
        "TTFT p50",
        "p95",
        "p99",
        "gap p50",
        "p95",
        "p99",
    ):
        shown.add_column(name, justify="right", no_wrap=True)
    for result in results:
        ttft, gap = result.ttft_ms, result.gap_ms
        row = (result.concurrency, result.num_requests, result.num_failed, result.tokens_per_second)
        shown.add_row(*(f"{value:g}" for value in (*row, *ttft.values(), *gap.values())))
    return shown


def conditions(load: Load) -> str:
    """Return what must be known to read the numbers."""
    return (
        f"{load.endpoint} at {load.url}, model {load.model}, {load.prompt_tokens} prompt tokens, "
        f"{load.max_tokens} new tokens, temperature {load.temperature:g}, "
        f"client: Python {platform.python_version()} on {platform.machine()}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the command its flags."""
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server, without /v1")
    parser.add_argument("--model", default="", help="served name; empty: the first of /v1/models")
    parser.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--requests", type=int, default=0, help="per level; 0: twice its streams")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument(
        "--no-ignore-eos", dest="ignore_eos", action="store_false", help="for servers without it"
    )
    parser.add_argument("--api-key", default="", help="sent as a bearer token")
    parser.add_argument("--json", default="", metavar="FILE", help="also write the results here")


def main(parsed: argparse.Namespace) -> int:
    """Measure each level of concurrency, print the table, and return 1 if any request failed."""
    from rich.console import Console

    load = Load(
        url=parsed.url,
        model=parsed.model or _first_model(parsed.url, parsed.api_key),
        endpoint=parsed.endpoint,
        prompt_tokens=parsed.prompt_tokens,
        max_tokens=parsed.max_tokens,
        temperature=parsed.temperature,
        ignore_eos=parsed.ignore_eos,
        api_key=parsed.api_key,
    )
    console = Console()
    console.print(conditions(load))
    results = []
    for level, concurrency in enumerate(parsed.concurrency):
        num_requests = parsed.requests or 2 * concurrency
        results.append(run(load, concurrency, num_requests, first_seed=level * 1_000_000))
    console.print(table(results))
    for error in sorted({error for result in results for error in result.errors}):
        console.print(f"failed: {error}")
    if parsed.json:
        with open(parsed.json, "w", encoding="utf-8") as out:
            json.dump(
                {"load": asdict(load) | {"api_key": ""}, "results": list(map(asdict, results))}, out
            )
    return int(any(result.num_failed for result in results))


def _ask(load: Load, seed: int) -> Sample:
    started = time.perf_counter()
    try:
        arrivals, output_tokens = _stream(load, seed)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Sample(0.0, (), 0, f"{type(error).__name__}: {error}"[:200])
    if not arrivals:
        return Sample(0.0, (), 0, "no text arrived")
    gaps = tuple(later - earlier for earlier, later in zip(arrivals, arrivals[1:], strict=False))
    return Sample(arrivals[0] - started, gaps, output_tokens)


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
            if choice.get("text") or choice.get("delta", {}).get("content"):
                arrivals.append(time.perf_counter())
        output_tokens = (payload.get("usage") or {}).get("completion_tokens", output_tokens)
    if not is_done:
        raise ValueError("the stream ended without [DONE]")
    return arrivals, output_tokens


def _events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    buffer = b""
    while piece := response.read1(65536):
        *whole, buffer = (buffer + piece).split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: "):
                yield event[6:]


def _summary(samples: Sequence[Sample], concurrency: int, seconds: float) -> Result:
    good = [sample for sample in samples if not sample.error]
    gaps = [gap for sample in good for gap in sample.gaps]
    output_tokens = sum(sample.output_tokens for sample in good)
    return Result(
        concurrency=concurrency,
        num_requests=len(samples),
        num_failed=len(samples) - len(good),
        seconds=round(seconds, 3),
        output_tokens=output_tokens,
        tokens_per_second=round(output_tokens / seconds, 2),
        ttft_ms=_percentiles([sample.ttft for sample in good]),
        gap_ms=_percentiles(gaps),
        errors=tuple(sorted({sample.error for sample in samples if sample.error})),
    )


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {
        name: round(1000 * percentile(seconds, p), 1)
        for name, p in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def _first_model(url: str, api_key: str) -> str:
    connection = _connect(url)
    try:
        connection.request("GET", "/v1/models", headers=_authorization(api_key))
        models: list[dict[str, str]] = json.loads(connection.getresponse().read())["data"]
        return models[0]["id"]
    finally:
        connection.close()


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_SECONDS)


def _authorization(api_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
