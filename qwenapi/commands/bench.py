"""`qwenapi bench`: load on any OpenAI-compatible server, and what its callers feel.

Closed loop: a number of callers each send the next request when the last has ended. Threads and
plain sockets: the client must not be what is measured. Knows nothing of the server but its HTTP.
With `--engine` it only reads the flags and shows what `workers.worker.bench` measured: an engine in
this process.
"""

import argparse
import http.client
import json
import platform
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qwenapi.settings.flags import add_flags
from qwenapi.settings.sources import load as load_settings
from qwenapi.settings.table import table as settings_table
from workers.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from workers.worker.bench import EngineBenchResult

WORDS = "the of and to in is that for it as with on be at by this have from or one had but".split()
TIMEOUT_SECONDS = 600
URL = "http://127.0.0.1:8000"
HTTP_FLAGS = ("url", "endpoint", "concurrency", "requests", "ignore_eos", "api_key")


@dataclass(frozen=True)
class Load:
    """What every caller asks for; a chat's prompt only comes near `prompt_tokens` tokens."""

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
class RequestSample:
    """One request. Times in seconds; `gaps` between the arrivals of successive pieces of text."""

    ttft: float
    gaps: tuple[float, ...]
    output_tokens: int
    error: str = ""


@dataclass(frozen=True)
class BenchResult:
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
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def table(results: Sequence[BenchResult]) -> "Table":
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


def engine_table(results: "Sequence[EngineBenchResult]") -> "Table":
    """Return what an engine gave, as a table for a terminal."""
    from rich.table import Table

    title = "median (least–greatest): prefill and decode in tokens/s, first token in ms"
    shown = Table(box=None, title=title)
    for name in ("streams", "prefill", "first token", "decode", "GPU busy", "GiB"):
        shown.add_column(name, justify="right", no_wrap=True)
    for result in results:
        busy = "–" if result.gpu_busy is None else f"{result.gpu_busy:.1%}"
        peak = "–" if result.peak_bytes is None else f"{result.peak_bytes / 2**30:.1f}"
        spreads = map(_spread, (result.prefill, result.ttft_ms, result.decode))
        shown.add_row(str(result.workload.streams), *spreads, busy, peak)
    return shown


def conditions(load: Load) -> str:
    """Return what must be known to read the numbers."""
    return (
        f"{load.endpoint} at {load.url}, model {load.model}, {load.prompt_tokens} prompt tokens, "
        f"{load.max_tokens} new tokens, temperature {load.temperature:g}, "
        f"client: Python {platform.python_version()} on {platform.machine()}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the command its flags; one left out is absent from the parsed namespace."""
    absent: dict[str, Any] = {"default": argparse.SUPPRESS}
    number: dict[str, Any] = {"type": positive, "metavar": "N", **absent}
    both = parser.add_argument_group("both ways")
    model = "served name (default: the first of /v1/models); with --engine: directory of the model"
    both.add_argument("--model", help=model, **absent)
    both.add_argument("--prompt-tokens", help="(default: 128; with --engine: 1024)", **number)
    both.add_argument("--max-tokens", help="(default: 64; with --engine: 128)", **number)
    both.add_argument("--temperature", type=float, help="(default: 0)", **absent)
    both.add_argument("--json", metavar="FILE", help="also write the results here", **absent)
    http = parser.add_argument_group("a server, over HTTP")
    http.add_argument("--url", help=f"the server, without /v1 (default: {URL})", **absent)
    http.add_argument("--endpoint", choices=("completions", "chat"), **absent)
    http.add_argument("--concurrency", nargs="+", help="(default: 1 8 32)", **number)
    http.add_argument("--requests", help="per level (default: twice its streams)", **number)
    eos: dict[str, Any] = {
        "dest": "ignore_eos",
        "action": "store_false",
        "help": "for servers without it",
    }
    http.add_argument("--no-ignore-eos", **eos, **absent)
    http.add_argument("--api-key", help="sent as a bearer token", **absent)
    engine = parser.add_argument_group("an engine alone, in this process")
    engine.add_argument("--engine", action="store_true", help="measure this way")
    engine.add_argument("--streams", nargs="+", help="(default: 1 8 64)", **number)
    add_flags(parser, "bench")


def main(parsed: argparse.Namespace) -> int:
    """Measure a server or an engine, print the table, and return 1 if any request failed."""
    given = vars(parsed)
    if parsed.engine:
        _refuse(given, HTTP_FLAGS, "asks a server over HTTP; with --engine leave it out")
    else:
        _refuse(given, ("streams", *_engine_settings()), "is for an engine alone; add --engine")
    return _measure_engine(given) if parsed.engine else _measure_server(given)


def _measure_server(given: dict[str, Any]) -> int:
    from rich.console import Console

    load = Load(**({"url": URL, "model": ""} | _fields(Load, given)))
    load = replace(load, model=load.model or _first_model(load.url, load.api_key))
    console = Console()
    console.print(conditions(load))
    results = []
    for level, concurrency in enumerate(given.get("concurrency", (1, 8, 32))):
        num_requests = given.get("requests", 2 * concurrency)
        results.append(run(load, concurrency, num_requests, first_seed=level * 1_000_000))
    console.print(table(results))
    for error in sorted({error for result in results for error in result.errors}):
        console.print(f"failed: {error}")
    report = {"load": asdict(load) | {"api_key": ""}, "results": list(map(asdict, results))}
    _write(given, report)
    return int(any(result.num_failed for result in results))


def _measure_engine(given: dict[str, Any]) -> int:
    from rich.console import Console

    from qwenapi.hub.fetch import with_local_model
    from workers.worker import bench

    names = given.keys() & {"model", *_engine_settings()}
    asked = load_settings({name: given[name] for name in names})
    config = with_local_model(asked, lambda line: print(line, file=sys.stderr)).engine_config()
    if config.stub:
        raise ConfigError("stub is set, and --engine measures a real engine: unset it")
    engine = bench.load(config, lambda what, fraction: None)
    facts = bench.conditions(config, engine.card)
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    results = []
    for streams in given.get("streams", (1, 8, 64)):
        workload = bench.Workload(**_fields(bench.Workload, given) | {"streams": streams})
        results.append(bench.measure(engine, workload))
    console.print(engine_table(results))
    _write(given, {"conditions": facts, "results": list(map(asdict, results))})
    return 0


def _engine_settings() -> list[str]:
    return [row.name for row in settings_table().values() if row.scope == "model"]


def _refuse(given: dict[str, Any], names: Iterable[str], why: str) -> None:
    for name in names:
        if name in given:
            flag = "no_ignore_eos" if name == "ignore_eos" else name
            raise ConfigError(f"--{flag.replace('_', '-')} {why}")


def _fields(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given for fields of a dataclass."""
    return {field.name: given[field.name] for field in fields(kind) if field.name in given}


def _write(given: dict[str, Any], report: dict[str, Any]) -> None:
    if "json" in given:
        with open(given["json"], "w", encoding="utf-8") as out:
            json.dump(report, out)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _ask(load: Load, seed: int) -> RequestSample:
    started = time.perf_counter()
    try:
        arrivals, output_tokens = _stream(load, seed)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return RequestSample(0.0, (), 0, f"{type(error).__name__}: {error}"[:200])
    if not arrivals:
        return RequestSample(0.0, (), 0, "no text arrived")
    gaps = tuple(later - earlier for earlier, later in zip(arrivals, arrivals[1:], strict=False))
    return RequestSample(arrivals[0] - started, gaps, output_tokens)


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
        errors=tuple(sorted({sample.error for sample in samples if sample.error})),
    )


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {
        name: round(1000 * percentile(seconds, p), 1)
        for name, p in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def _spread(values: Sequence[float]) -> str:
    middle, least, greatest = statistics.median(values), min(values), max(values)
    digits = 0 if greatest >= 100 else 1
    return f"{middle:,.{digits}f} ({least:,.{digits}f}–{greatest:,.{digits}f})"


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
