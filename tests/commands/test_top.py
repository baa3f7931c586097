"""What `qwenapi top` shows is what the shared memory of a running start holds."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qwenapi.commands.top import (
    EngineReading,
    TopReading,
    _show_once,
    find,
    report,
    upper_bound,
)
from qwenapi.metrics.layout import HISTOGRAMS, metrics_layout
from qwenapi.metrics.snapshot import Distribution, take_snapshot
from tests.running_server import RunningServer, wait_for
from workers.errors import ConfigError
from workers.wire.engine_stats import ENGINE_LAYOUT, EngineRow
from workers.wire.shared_memory import SharedMemory
from workers.wire.shared_memory_files import shared_memory_path


def top(*flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "qwenapi", "top", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def truth(server: RunningServer):
    layout = metrics_layout(("openai",))
    memory = SharedMemory.open(shared_memory_path(server.run_dir, layout), layout)
    try:
        return take_snapshot(memory, ("openai",))
    finally:
        memory.close()


def test_its_numbers_are_those_of_the_pages(start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.005")
    for _ in range(3):
        assert server.text("hello", max_tokens=7)
    assert server.chat("hello", max_tokens=0).status_code == 400
    server.wait_until_idle()
    done = top("--run-dir", str(server.run_dir), "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert list(shown["profiles"]) == ["openai"]
    row, counts = shown["profiles"]["openai"], truth(server).total
    assert {name: row[name] for name in ("accepted", "successful", "failed", "cancelled")} == {
        "accepted": 3,
        "successful": 3,
        "failed": 0,
        "cancelled": 0,
    }
    assert (row["running"], row["waiting"]) == (counts.running, counts.waiting) == (0, 0)
    for name, count in (("ttft", 3), ("inter_token", 18), ("latency", 3)):
        distribution = counts.distribution(name)
        assert row[name] == {
            "p50": upper_bound(distribution, 0.5),
            "p95": upper_bound(distribution, 0.95),
            "count": count,
        }
    (engine,) = shown["engines"]
    assert engine["generated_tokens"] == server.row()["generated_tokens"] == 21
    assert engine["phase"] == "idle" and engine["restarts"] == 0
    assert engine["last_sign_of_life"] < 30
    assert (engine["drafted_tokens"], engine["accepted_tokens"]) == (0, 0)
    assert shown["http_processes"] == 1 and shown["uptime"] > 0


def test_rates_are_what_came_between_two_readings(start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.02")
    memories = find({"run_dir": str(server.run_dir)}, {})
    before = memories.read()
    asked = threading.Thread(target=server.text, args=("hello",), kwargs={"max_tokens": 400})
    asked.start()
    wait_for(lambda: truth(server).total["completion_tokens"] >= 20)
    after = memories.read()
    shown = report(before, after)
    row = shown["profiles"]["openai"]
    assert (row["running"], row["accepted"]) == (1, 1)
    assert after.metrics_store and after.metrics_store.total["completion_tokens"] >= 20
    seconds = after.at - before.at
    tokens = after.metrics_store.total["completion_tokens"]
    assert row["tokens_per_second"] == pytest.approx(tokens / seconds, abs=0.06)
    engine = shown["engines"][0]
    generated = after.engines[0].row.values["generated_tokens"]
    assert engine["tokens_per_second"] == pytest.approx(generated / seconds, abs=0.06)
    assert engine["running"] == 1 and engine["kv_cache_usage"] > 0
    asked.join(60)


def test_its_table_names_every_profile_and_engine(start_server):
    server = start_server("--stub", "--profile", "all")
    done = top("--run-dir", str(server.run_dir), "--once")
    assert done.returncode == 0, done.stderr
    for word in ("openai", "coder", "qwen2", "guide", "browser", "news", "upper bound", "idle"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160


@pytest.mark.parametrize(("drafted", "accepted", "words"), [(0, 0, "–"), (8, 6, "75%")])
def test_its_table_says_how_many_drafts_were_right(capsys, drafted, accepted, words):
    values = dict.fromkeys(ENGINE_LAYOUT.fields, 0)
    values |= {"drafted_tokens": drafted, "accepted_tokens": accepted}
    reading = TopReading(1.0, None, [EngineReading(EngineRow(0, "", "idle", values), 0.0)])
    _show_once(report(reading, reading), as_json=False)
    titles, row = capsys.readouterr().out.splitlines()[-2:]
    assert row[: titles.index("drafts right") + len("drafts right")].endswith(f" {words}")


def test_its_table_has_states_where_a_model_is_a_hybrid(capsys):
    def shown(*engines):
        rows = [
            EngineRow(i, "", "idle", dict.fromkeys(ENGINE_LAYOUT.fields, 0) | values)
            for i, values in enumerate(engines)
        ]
        reading = TopReading(1.0, None, [EngineReading(row, 0.0) for row in rows])
        _show_once(report(reading, reading), as_json=False)
        return capsys.readouterr().out.splitlines()[-1 - len(engines) :]

    assert "states used" not in shown({})[0]
    hybrid = {"total_state_slots": 20, "free_state_slots": 13, "state_snapshots": 6}
    titles, first, second = shown(hybrid | {"state_snapshot_hits": 9}, {})
    for title, cell, none in (("states used", "7 of 20", "–"), ("snapshots", "6", "–"),
                              ("hits", "9", "–")):  # fmt: skip
        end = titles.index(title) + len(title)
        assert first[:end].endswith(f" {cell}") and second[:end].endswith(f" {none}")


def test_both_halves_are_found_where_they_run_apart(tmp_path, start_server):
    model = RunningServer(tmp_path / "model-qwen-demo", "--stub", command="model")
    try:
        model.wait_until_ready()
        http = start_server("--model-run-dir", str(model.run_dir), command="http")
        flags = ("--run-dir", str(http.run_dir))
        for more in ((), ("--model-run-dir", str(model.run_dir))):
            shown = json.loads(top(*flags, *more, "--json").stdout)
            assert shown["http_processes"] == 1 and len(shown["engines"]) == 1
        alone = json.loads(top("--run-dir", str(model.run_dir), "--json").stdout)
        assert alone["profiles"] == {} and alone["engines"][0]["phase"] == "idle"
    finally:
        model.stop()


def test_where_nothing_runs_it_says_so_and_names_what_does(tmp_path, start_server):
    server = start_server("--stub")
    done = top("--run-dir", str(tmp_path / "elsewhere"), "--once")
    assert done.returncode == 78
    assert f"no qwenapi runs at {tmp_path / 'elsewhere'}" in done.stderr
    assert str(server.run_dir) in done.stderr
    server.stop()
    done = top("--run-dir", str(server.run_dir), "--once")
    assert done.returncode == 78 and "start one with qwenapi serve" in done.stderr


def test_pages_of_a_killed_start_are_not_taken_for_a_running_one(start_server):
    server = start_server("--stub")
    for process in server.tree():
        process.suspend()
    processes = server.tree()
    server.process.kill()
    for process in processes:
        process.kill()
    server.process.wait(10)
    memories = find({"run_dir": str(server.run_dir)}, {})
    wait_for(lambda: not memories.read().is_alive)
    done = top("--run-dir", str(server.run_dir), "--once")
    assert done.returncode == 78 and "no qwenapi runs" in done.stderr
    for memory in (shared_memory_path(server.run_dir, metrics_layout(("openai",))).parent).glob(
        "*.shm"
    ):
        if memory.name.startswith(
            shared_memory_path(server.run_dir, metrics_layout(("openai",))).name[:20]
        ):
            memory.unlink()


def test_a_folder_of_nobody_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no qwenapi runs"):
        find({"run_dir": str(tmp_path)}, {})


@pytest.mark.parametrize(
    ("counts", "share", "bound"),
    [
        ((0,), 0.5, None),
        ((1,), 0.5, 0.1),
        ((0, 1), 0.95, 0.3),
        ((9, 1), 0.5, 0.1),
        ((9, 1), 0.95, 0.3),
        ((10, 10), 0.5, 0.3),
    ],
)
def test_a_percentile_is_the_bound_of_the_bucket_it_lies_in(counts, share, bound):
    histogram = next(h for h in HISTOGRAMS if h.name == "latency")
    padded = (*counts, *[0] * (len(histogram.bounds) + 1 - len(counts)))
    assert upper_bound(Distribution(histogram, padded, 0.0), share) == bound


def test_a_percentile_beyond_the_last_bound_is_told_as_such():
    histogram = HISTOGRAMS[0]
    counts = (*[0] * len(histogram.bounds), 3)
    assert upper_bound(Distribution(histogram, counts, 9.0), 0.5) == float("inf")


def test_its_folder_may_be_named_by_the_environment(tmp_path, start_server):
    server = start_server("--stub")
    assert find({}, {"RUNTIME_DIRECTORY": str(server.run_dir)}).folder == Path(server.run_dir)
