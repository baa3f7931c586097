"""Metrics in Prometheus' format, under our names, vLLM's, and four of the news profile's.

A collector over one MetricsReading; it keeps nothing between two scrapes. What vLLM counts for an
engine has its label `engine`; what is only known of the whole HTTP half has `model_name` alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from qwenapi import __version__
from qwenapi.metrics.layout import ALERTS, ENDINGS, FAILURES, FINISH_REASONS
from qwenapi.metrics.report import MetricsReading, throughput, time_to_first_token
from qwenapi.metrics.snapshot import Counts, Distribution
from workers.wire.engine_stats import EngineRow

Labels = Sequence[str]
Sample = tuple[Labels, float]


class EngineFigure(NamedTuple):
    """A number of an engine's row under our name and vLLM's, empty where it has none."""

    kind: str
    ours: str
    vllms: str
    text: str
    value: Callable[[EngineRow], float]


def _field(name: str) -> Callable[[EngineRow], float]:
    return lambda row: row.values[name]


# Of each histogram of the metrics store: our name, vLLM's, and what it measures.
HISTOGRAMS = {
    "ttft": (
        "qwenapi_time_to_first_token_seconds",
        "vllm:time_to_first_token_seconds",
        "From a request's arrival to its first token.",
    ),
    "inter_token": (
        "qwenapi_inter_token_seconds",
        "vllm:inter_token_latency_seconds",
        "Between two arrivals of tokens of one choice.",
    ),
    "latency": (
        "qwenapi_request_seconds",
        "vllm:e2e_request_latency_seconds",
        "From a successful request's arrival to its end.",
    ),
    "queue": (
        "qwenapi_queue_seconds",
        "vllm:request_queue_time_seconds",
        "How long a successful request waited to run.",
    ),
    "prefill": (
        "qwenapi_prefill_seconds",
        "vllm:request_prefill_time_seconds",
        "From a successful request's start to its first token.",
    ),
    "decode": (
        "qwenapi_decode_seconds",
        "vllm:request_decode_time_seconds",
        "From a successful request's first token to its end.",
    ),
    "prompt": (
        "qwenapi_request_prompt_tokens",
        "vllm:request_prompt_tokens",
        "Prompt tokens of a successful request.",
    ),
    "completion": (
        "qwenapi_request_completion_tokens",
        "vllm:request_generation_tokens",
        "Tokens of a successful request's answer.",
    ),
}
ENGINE_FIGURES = tuple(
    EngineFigure(*row)
    for row in (
        (
            "gauge",
            "qwenapi_engine_up",
            "",
            "Whether the engine takes requests.",
            lambda row: row.is_up,
        ),
        (
            "gauge",
            "qwenapi_kv_cache_usage_ratio",
            "vllm:kv_cache_usage_perc",
            "Used share of the engine's cache, 1 for all.",
            lambda row: row.kv_cache_usage,
        ),
        (
            "gauge",
            "qwenapi_engine_running_sequences",
            "vllm:num_requests_running",
            "Sequences the engine runs.",
            _field("running"),
        ),
        (
            "gauge",
            "qwenapi_engine_waiting_sequences",
            "vllm:num_requests_waiting",
            "Sequences that wait in the engine.",
            _field("waiting"),
        ),
        (
            "counter",
            "qwenapi_engine_prompt_tokens",
            "vllm:prompt_tokens",
            "Prompt tokens of requests the engine has started.",
            _field("prompt_tokens"),
        ),
        (
            "counter",
            "",
            "vllm:prefix_cache_queries",
            "Prompt tokens looked for in the engine's cache.",
            _field("prompt_tokens"),
        ),
        (
            "counter",
            "qwenapi_engine_cached_tokens",
            "vllm:prefix_cache_hits",
            "Prompt tokens found in the engine's cache.",
            _field("cached_tokens"),
        ),
        (
            "counter",
            "qwenapi_engine_generated_tokens",
            "vllm:generation_tokens",
            "Tokens the engine has generated.",
            _field("generated_tokens"),
        ),
        (
            "counter",
            "qwenapi_engine_preemptions",
            "vllm:num_preemptions",
            "Sequences sent back to wait for want of cache.",
            _field("preemptions"),
        ),
        (
            "counter",
            "qwenapi_engine_drafted_tokens",
            "vllm:spec_decode_num_draft_tokens",
            "Tokens drafted for speculative decoding.",
            _field("drafted_tokens"),
        ),
        (
            "counter",
            "qwenapi_engine_accepted_tokens",
            "vllm:spec_decode_num_accepted_tokens",
            "Drafted tokens that were right.",
            _field("accepted_tokens"),
        ),
        (
            "counter",
            "qwenapi_engine_nonfinite_logits",
            "",
            "Requests that failed because their logits were NaN or infinite.",
            _field("nonfinite_logits"),
        ),
        (
            "counter",
            "qwenapi_engine_encoded_images",
            "",
            "Pictures that went through the model's vision tower.",
            _field("encoded_images"),
        ),
        (
            "counter",
            "qwenapi_engine_cached_images",
            "",
            "Pictures whose features were still known.",
            _field("cached_images"),
        ),
        (
            "counter",
            "qwenapi_engine_restarts",
            "",
            "Starts of the engine after its first.",
            lambda row: row.num_restarts,
        ),
        (
            "gauge",
            "qwenapi_device_memory_allocated_bytes",
            "",
            "Memory the engine has allocated on its GPU, 0 on a CPU.",
            _field("device_allocated"),
        ),
        (
            "gauge",
            "qwenapi_device_memory_total_bytes",
            "",
            "Memory of the engine's GPU, 0 on a CPU.",
            _field("device_total"),
        ),
    )
)
# Of engines whose model is a hybrid.
STATE_FIGURES = tuple(
    EngineFigure(*row)
    for row in (
        (
            "gauge",
            "qwenapi_engine_state_slots",
            "",
            "Slots for recurrent states: of sequences, snapshots, or blank.",
            _field("total_state_slots"),
        ),
        (
            "gauge",
            "qwenapi_engine_state_slots_used",
            "",
            "State slots that sequences hold.",
            lambda row: row.used_state_slots,
        ),
        (
            "gauge",
            "qwenapi_engine_state_snapshots",
            "",
            "Snapshots of states kept, from which prompts with a known beginning go on.",
            _field("state_snapshots"),
        ),
        (
            "counter",
            "qwenapi_engine_state_snapshot_hits",
            "",
            "Sequences that went on from a snapshot.",
            _field("state_snapshot_hits"),
        ),
    )
)


class MetricsCollector:
    """Registered with a CollectorRegistry; `read` is called once a scrape."""

    def __init__(self, read: Callable[[], MetricsReading]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        reading = self._read()
        yield from _documented(reading)
        yield from _requests(reading)
        yield from _engines(reading)
        yield from _service(reading)
        yield from _as_vllm(reading)


def _documented(reading: MetricsReading) -> Iterator[Metric]:
    """Yield the news document's gauges, with its words."""
    total, records = reading.snapshot.total, reading.snapshot.records
    p95, decoding = time_to_first_token(records)["p95"], throughput(records)["decoding_mean"]
    for name, text, value in (
        ("num_waiting_requests", "Number of requests waiting in queue", total.waiting),
        ("num_running_requests", "Number of requests currently running", total.running),
        ("ttft_p95", "P95 time to first token in seconds", p95),
        ("decoding_throughput_mean", "Mean decoding throughput in tokens/sec", decoding),
    ):
        yield GaugeMetricFamily(f"vllm_{name}", text, value)


def _requests(reading: MetricsReading) -> Iterator[Metric]:
    profiles = reading.snapshot.profiles
    for name, field, text in (
        ("requests_accepted", "accepted", "Requests taken, or refused for want of room."),
        ("prompt_tokens", "prompt_tokens", "Prompt tokens of all requests."),
        ("cached_prompt_tokens", "cached_tokens", "Prompt tokens of them that a cache had."),
        ("completion_tokens", "completion_tokens", "Tokens of all answers."),
    ):
        samples = _by_profile(profiles, {(): field})
        yield _family("counter", f"qwenapi_{name}", text, ("profile",), samples)
    endings = _by_profile(profiles, {(ending,): ending for ending in ENDINGS})
    failures = _by_profile(profiles, {(failure,): f"failed.{failure}" for failure in FAILURES})
    text = "Requests that have ended, by how."
    yield _family("counter", "qwenapi_requests", text, ("profile", "outcome"), endings)
    text = "Requests that have failed, by why."
    yield _family("counter", "qwenapi_failures", text, ("profile", "type"), failures)
    running = [((name,), counts.running) for name, counts in profiles.items()]
    waiting = [((name,), counts.waiting) for name, counts in profiles.items()]
    text = "Requests that run now."
    yield _family("gauge", "qwenapi_requests_running", text, ("profile",), running)
    text = "Requests that wait to run."
    yield _family("gauge", "qwenapi_requests_waiting", text, ("profile",), waiting)
    for field, (name, _, text) in HISTOGRAMS.items():
        found = [((each,), counts.distribution(field)) for each, counts in profiles.items()]
        yield _histogram(name, text, ("profile",), found)


def _engines(reading: MetricsReading) -> Iterator[Metric]:
    for kind, name, _, text, value in ENGINE_FIGURES:
        if name:
            samples = [((str(row.engine),), value(row)) for row in reading.engines]
            yield _family(kind, name, text, ("engine",), samples)
    hybrids = [row for row in reading.engines if row.has_state]
    for kind, name, _, text, value in STATE_FIGURES if hybrids else ():
        samples = [((str(row.engine),), value(row)) for row in hybrids]
        yield _family(kind, name, text, ("engine",), samples)
    placed = [((str(row.engine), row.node), 1) for row in reading.engines if row.node]
    if placed:
        text = "1, for the node of the cluster that the engine is on."
        yield _family("gauge", "qwenapi_engine_node_info", text, ("engine", "node"), placed)
    busy = [((str(engine),), gpu.utilization) for engine, gpu in reading.gpus.items()]
    if busy:
        text = "Share of time the engine's GPU was busy."
        yield _family("gauge", "qwenapi_device_utilization_ratio", text, ("engine",), busy)


def _service(reading: MetricsReading) -> Iterator[Metric]:
    snapshot = reading.snapshot
    for name, text, value in (
        ("ready", "Whether requests are taken.", reading.is_ready),
        (
            "http_processes",
            "HTTP processes that count into the metrics store.",
            snapshot.num_processes,
        ),
        ("ledger_shared", "Whether these numbers are of all HTTP processes.", reading.is_shared),
        (
            "max_waiting_requests",
            "Requests that may wait before the next is refused.",
            reading.settings.limits_max_waiting,
        ),
    ):
        yield GaugeMetricFamily(f"qwenapi_{name}", text, value)
    text = "Requests that went on in another engine after theirs was lost."
    yield CounterMetricFamily("qwenapi_replays", text, snapshot.replays)
    alerts = [((name,), name in snapshot.alerts) for name in ALERTS]
    yield _family("gauge", "qwenapi_alert", "Whether the alert is up.", ("name",), alerts)
    version = [((__version__,), 1)]
    yield _family("gauge", "qwenapi_build_info", "The running version.", ("version",), version)


def _as_vllm(reading: MetricsReading) -> Iterator[Metric]:
    model, total = reading.settings.served_names[0], reading.snapshot.total
    for kind, _, name, text, value in ENGINE_FIGURES:
        if name:
            samples = [((model, str(row.engine)), value(row)) for row in reading.engines]
            yield _family(kind, name, text, ("model_name", "engine"), samples)
    reasons = {reason: total[f"finish.{reason}"] for reason in FINISH_REASONS}
    reasons["abort"] = total["cancelled"]
    ended = [((model, reason), count) for reason, count in reasons.items()]
    labels = ("model_name", "finished_reason")
    yield _family("counter", "vllm:request_success", "Finished requests.", labels, ended)
    for field, (_, name, text) in HISTOGRAMS.items():
        found = [((model,), total.distribution(field))]
        yield _histogram(name, text, ("model_name",), found)


def _by_profile(
    profiles: Mapping[str, Counts], fields: Mapping[tuple[str, ...], str]
) -> list[Sample]:
    """Return a sample for each profile and each field; the keys are the labels behind its name."""
    return [
        ((name, *labels), counts[field])
        for name, counts in profiles.items()
        for labels, field in fields.items()
    ]


def _family(
    kind: str, name: str, text: str, labels: Labels, samples: Iterable[Sample]
) -> CounterMetricFamily | GaugeMetricFamily:
    make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = make(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _histogram(
    name: str, text: str, labels: Labels, samples: Iterable[tuple[Labels, Distribution]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, found in samples:
        bounds = (*found.histogram.bounds, math.inf)
        buckets = zip(map(floatToGoString, bounds), accumulate(found.counts), strict=True)
        family.add_metric(values, list(buckets), found.sum)
    return family
