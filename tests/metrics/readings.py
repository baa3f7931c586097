"""Readings made by hand, for the tests of what is reported from them."""

from qwenapi.metrics.layout import HISTOGRAMS, NANO, OFFSETS, PROFILE
from qwenapi.metrics.report import MetricsReading
from qwenapi.metrics.snapshot import Counts, Record, Snapshot
from qwenapi.settings.table import Settings
from workers.wire.engine_stats import ENGINE_LAYOUT, EngineRow

NOW = 1_766_582_000.25
GIB = 1024**3
# The arithmetic behind the document's sample: latency, time to first token, tokens.
SAMPLE = ((3.467, 0.5203, 11), (4.0945, 0.9588, 12), (6.2639, 0.6143, 20))


def counts(records=(), **fields):
    """Return Counts with these fields, and what their histograms hold of the records."""
    values = [0] * len(PROFILE)
    for field, value in fields.items():
        values[OFFSETS[field.replace("__", ".")]] = value
    observed = {"latency": [r.latency for r in records], "ttft": [r.ttft for r in records]}
    for histogram in HISTOGRAMS:
        for value in observed.get(histogram.name, ()):
            place = sum(bound < value for bound in histogram.bounds)
            values[OFFSETS[f"{histogram.name}.{place}"]] += 1
            values[OFFSETS[f"{histogram.name}.sum"]] += int(value * NANO)
    return Counts(tuple(values))


def record(latency, ttft, tokens, end=NOW):
    return Record(end, latency, ttft, 9, 0, tokens, "news")


def snapshot(profiles=None, records=(), **facts):
    none = {"alerts": {}, "peak_running": 0, "replays": 0, "num_processes": 1}
    facts = none | {"since": NOW - 117.3} | facts
    return Snapshot(profiles=profiles or {"news": counts()}, records=records, **facts)


def engine_row(engine=0, device="cpu", state="ready", **values):
    return EngineRow(engine, device, state, dict.fromkeys(ENGINE_LAYOUT.fields, 0) | values)


def reading(taken, engines=(), **facts):
    facts = {"settings": Settings(), "now": NOW, "is_ready": True} | facts
    return MetricsReading(snapshot=taken, engines=engines, **facts)


def sample_reading(**facts):
    """Return what document 004's server had read when it printed its sample."""
    records = [record(*figures) for figures in SAMPLE]
    done = {"accepted": 3, "started": 3, "successful": 3, "finish__stop": 3}
    tokens = {"prompt_tokens": 27, "completion_tokens": 43}
    gpu = engine_row(
        device="cuda:0", device_allocated=int(7.64 * GIB), device_total=int(9.64 * GIB)
    )
    taken = snapshot({"news": counts(records, **done, **tokens)}, records, peak_running=1)
    return reading(taken, [gpu], **facts)
