"""The metrics store says what the callers were told, whatever happened to them and to us."""

import contextlib
import random
import resource
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import sub

import psutil
import pytest

from qwenapi.metrics.layout import PROFILE, metrics_layout
from qwenapi.metrics.snapshot import Counts, Snapshot, take_snapshot
from qwenapi.metrics.store import MetricsStore
from qwenapi.settings.table import etc_dir
from tests.e2e.test_http_on_stub import raw_request
from tests.metrics.callers import (
    BAD,
    PROMPT,
    Caller,
    Told,
    chat,
    coder,
    completions,
    generate,
)
from tests.running_server import RunningServer, quickest, wait_for
from workers.wire.shared_memory import SharedMemory
from workers.wire.shared_memory_files import shared_memory_path

PROFILES = tuple(tomllib.loads((etc_dir() / "profiles/all.toml").read_text())["api"]["profiles"])
LAYOUT = metrics_layout(PROFILES)
NUM_WORKERS, NUM_ENGINES = 3, 2
STEP_SECONDS = "0.01"
DEFAULT_TOKENS = 30
FAULTS = ("none", "engine", "worker", "crowd")
LONG = 150  # tokens: nothing in flight ends by itself while a worker is being killed
ENDLESS = 4000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RunningServer(
        tmp_path_factory.mktemp("truth"), "--stub", "--stub-step-seconds", STEP_SECONDS,
        "--profile", "all", "--api-server-count", str(NUM_WORKERS),
        "--data-parallel-size", str(NUM_ENGINES), "--queue-timeout", "1",
        "--default-max-tokens", str(DEFAULT_TOKENS),
    )  # fmt: skip
    try:
        server.wait_until_ready()
        wait_for(lambda: num_connections(server) == NUM_WORKERS * NUM_ENGINES)
        yield server
        assert server.stop() == 0
    finally:
        server.close()


@contextlib.contextmanager
def open_page(server):
    memory = SharedMemory.open(shared_memory_path(server.run_dir, LAYOUT), LAYOUT)
    try:
        yield memory
    finally:
        memory.close()


def look(server: RunningServer) -> Snapshot:
    with open_page(server) as memory:
        return take_snapshot(memory, PROFILES)


def seconds_to_look(server: RunningServer) -> float:
    return quickest(lambda: look(server), 30)[0]


def used_slots(server: RunningServer) -> list[int]:
    with open_page(server) as memory:
        return [slot for slot in range(memory.num_slots) if memory.values(slot)[0]]


def num_connections(server: RunningServer) -> int:
    """Return how often an HTTP process has found an engine, since the start."""
    return server.log.count(".sock connected")


def at_rest(server: RunningServer) -> Snapshot:
    """Return the metrics once nothing is in flight and every process that was killed is back."""

    def is_at_rest() -> bool:
        found = look(server)
        return (
            found.num_processes == NUM_WORKERS
            and found.total["accepted"] == found.total.ended
            and all(
                row["running"] == row["waiting"] == 0 for row in map(server.row, range(NUM_ENGINES))
            )
        )

    wait_for(is_at_rest, 30, lambda: f"{look(server).total.failures} {server.log[-3000:]}")
    return look(server)


def difference(before: Counts, after: Counts) -> Counts:
    return Counts(tuple(map(sub, after.values, before.values)))


class Watch(threading.Thread):
    """Looks at the metrics all the time; `steps_back` are the counters that ever became less."""

    def __init__(self, server: RunningServer) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._is_over = threading.Event()
        self.num_looks = 0
        self.steps_back: list[str] = []

    def run(self) -> None:
        last = look(self._server)
        while not self._is_over.wait(0.02):
            now = look(self._server)
            self.num_looks += 1
            for profile in PROFILES:
                changes = difference(last.profiles[profile], now.profiles[profile]).values
                self.steps_back += [
                    f"{profile}.{field}: {change}"
                    for field, change in zip(PROFILE, changes, strict=True)
                    if change < 0
                ]
            last = now

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join(10)


def prompt_tokens(server: RunningServer) -> int:
    """Return how many tokens PROMPT takes in the interfaces that do not say."""
    before = at_rest(server).profiles["coder"]["prompt_tokens"]
    assert coder(DEFAULT_TOKENS, 0, stream=False).ask(server).ending == "whole"
    return at_rest(server).profiles["coder"]["prompt_tokens"] - before


def mixture(rng: random.Random, fault: str, prompt: int) -> list[Caller]:
    """Return who calls in one round, in a random order."""
    profiles = ("openai", "guide", "browser")
    if fault == "worker":
        return [chat(rng.choice(profiles), LONG, stream=rng.random() < 0.6) for _ in range(12)]
    some: list[Caller] = []
    for _ in range(rng.randint(8, 14)):
        tokens = rng.randint(40, 100) if fault == "engine" else rng.randint(1, 60)
        profile = rng.choice(profiles)
        some.append(
            rng.choice(
                (
                    chat(profile, tokens),
                    chat(profile, tokens, stream=True),
                    chat("news", tokens, stream=rng.random() < 0.5),
                    completions(tokens, stream=rng.random() < 0.5),
                    coder(DEFAULT_TOKENS, prompt, stream=rng.random() < 0.7),
                    generate(tokens, prompt),
                    rng.choice(BAD),
                )
            )
        )
    if fault == "crowd":
        tokens = rng.choice((20, 70))
        some += [chat("news", tokens, stream=rng.random() < 0.5) for _ in range(13)]
        some += [chat("news", ENDLESS, patience=rng.uniform(0.01, 0.3)) for _ in range(6)]
    if fault != "none" or rng.random() < 0.5:
        some += [
            chat(rng.choice(profiles), ENDLESS, stream=True, cut_after=rng.randint(1, 40))
            for _ in range(4)
        ]
        some += [chat("openai", ENDLESS, patience=rng.uniform(0.01, 0.5)) for _ in range(2)]
    rng.shuffle(some)
    return some


def strike(server: RunningServer, rng: random.Random, fault: str, accepted: int) -> None:
    """Kill what this round is about, a worker only once it may hold `accepted` in all."""
    if fault == "engine":
        time.sleep(rng.uniform(0, 0.4))  # the moment is what is random here
        psutil.Process(server.row(rng.randrange(2))["pid"]).kill()
    elif fault == "worker":
        wait_for(lambda: look(server).total["accepted"] == accepted)
        rng.choice(server.http_workers()).kill()


def failures_of(counts: Counts) -> Counter[str]:
    """Return the failures under the names callers can tell apart."""
    waiting = ("engine_unavailable", "queue_timeout")
    found: Counter[str] = Counter()
    for name, count in counts.failures.items():
        found["unavailable" if name in waiting else name] += count
    return found


def check(told: Sequence[Told], counts: Counts, fault: str) -> None:
    """Compare what the callers of one profile were told with what was counted of them."""
    endings = Counter(one.ending for one in told)
    whole = [one for one in told if one.ending == "whole"]
    unseen = [one for one in told if one.ending in ("cut", "lost")]
    assert counts["accepted"] == counts["started"] == counts.ended
    assert counts["successful"] == counts["finish.length"] == len(whole)
    assert counts["failed"] == sum(counts.failures.values())

    more = failures_of(counts)
    more.subtract(one.failure for one in told if one.ending == "failed")
    assert min(more.values(), default=0) >= 0, f"failures told but not counted: {more}"
    assert not more["worker_lost"] or fault == "worker"
    assert not more["engine_failed"] or fault == "engine"
    assert not more["internal_error"]
    assert counts["cancelled"] <= endings["cut"]
    accepted_unseen = counts["cancelled"] + sum(more.values())
    assert sum(one.is_begun for one in unseen) <= accepted_unseen <= len(unseen)
    if fault not in ("engine", "worker"):
        assert not endings["lost"] and not counts["failed.engine_unavailable"]

    check_tokens(told, whole, counts)


def check_tokens(told: Sequence[Told], whole: Sequence[Told], counts: Counts) -> None:
    for name in ("latency", "queue", "prefill", "decode", "prompt", "completion"):
        assert counts.distribution(name).count == len(whole), name
    assert counts.distribution("completion").sum == sum(one.completion_tokens for one in whole)
    assert counts.distribution("prompt").sum == sum(one.prompt_tokens for one in whole)
    received = {
        "prompt_tokens": sum(one.prompt_tokens for one in told),
        "completion_tokens": sum(one.completion_tokens for one in told),
    }
    for name, count in received.items():
        assert counts[name] >= count, name
        if all(one.ending in ("whole", "refused") for one in told):
            assert counts[name] == count, name


def by_profile(told: Iterable[Told], profile: str) -> list[Told]:
    return [one for one in told if one.profile == profile]


@pytest.mark.parametrize("seed", range(12))
def test_the_metrics_store_says_what_the_callers_were_told(server, seed):
    rng, fault = random.Random(seed), FAULTS[seed % len(FAULTS)]
    callers = mixture(rng, fault, prompt_tokens(server))
    before = at_rest(server)
    connections = num_connections(server)
    with Watch(server) as watch, ThreadPoolExecutor(len(callers)) as pool:
        answers = [pool.submit(caller.ask, server) for caller in callers]
        strike(server, rng, fault, before.total["accepted"] + len(callers))
        told = [answer.result() for answer in answers]
        found = {"engine": NUM_WORKERS, "worker": NUM_ENGINES}.get(fault, 0)
        wait_for(lambda: num_connections(server) == connections + found)
        after = at_rest(server)
    for profile in PROFILES:
        counts = difference(before.profiles[profile], after.profiles[profile])
        mine = by_profile(told, profile)
        print(seed, fault, profile, Counter((one.ending, one.failure) for one in mine))
        check(mine, counts, fault)
    assert sum(one.ending == "refused" for one in told) == sum(c in BAD for c in callers)
    num_whole = sum(one.ending == "whole" for one in told)
    assert len(after.records) - len(before.records) == num_whole
    assert watch.num_looks and not watch.steps_back


def test_twenty_killed_workers_leave_the_page_as_large_and_as_quick_as_it_was(server):
    at_rest(server)
    path = shared_memory_path(server.run_dir, LAYOUT)
    size, used, quick = path.stat().st_size, used_slots(server), seconds_to_look(server)
    for _ in range(7):  # three at a time, so that their successors come at once
        old = server.http_workers()
        connections = num_connections(server) + NUM_WORKERS * NUM_ENGINES
        for worker in old:
            worker.kill()
        psutil.wait_procs(old, timeout=10)
        wait_for(lambda count=connections: num_connections(server) == count)
        at_rest(server)
    assert len(used) == NUM_WORKERS and used_slots(server) == used
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 >= size, "a full tmpfs would be a SIGBUS later"
    assert seconds_to_look(server) < 3 * quick


def test_an_answer_its_caller_did_not_stay_for_is_no_success(server):
    # Far more than socket buffers hold: the end of the answer waits in one write of ours.
    body = {"model": "qwen-demo", "prompt": [PROMPT] * 16, "n": 8, "max_tokens": 300}
    before = at_rest(server).total
    with raw_request(server, body | {"stream": True}, "/v1/completions", receive_buffer=4096) as s:
        wait_for(lambda: look(server).total.running)
        wait_for(lambda: sum(server.row(i)["running"] for i in (0, 1)) == 0)
        while look(server).total["completion_tokens"] - before["completion_tokens"] < 16 * 8 * 300:
            assert s.recv(65536)
    counts = difference(before, at_rest(server).total)
    assert (counts["successful"], counts["cancelled"]) == (0, 1)


def test_processes_that_start_at_once_take_no_slot_more_than_they_are(tmp_path):
    path, count = tmp_path / "many.shm", 8
    memory = SharedMemory.create(path, LAYOUT, 64)
    for _ in range(20):
        line = threading.Barrier(count)

        def start(_: int, line: threading.Barrier = line) -> MetricsStore:
            line.wait()
            return MetricsStore.lease(str(path), PROFILES)

        with ThreadPoolExecutor(count) as pool:
            metrics_stores = list(
                pool.map(start, range(count))
            )  # each with a description of its own
        assert all(metrics_store.is_shared for metrics_store in metrics_stores)
        assert [slot for slot in range(64) if memory.values(slot)[0]] == list(range(count))
        for metrics_store in metrics_stores:
            metrics_store.memory.close()  # as its process's end would
    memory.close()


def test_a_full_storage_is_counted_as_one_that_is_not_available():
    metrics_store = MetricsStore.lease("", PROFILES)
    entry = metrics_store.begin("coder", time.monotonic())
    entry.accept(1)
    entry.fail("storage_full")
    assert take_snapshot(metrics_store.memory, PROFILES).total.failures == {
        "storage_unavailable": 1
    }


@pytest.fixture
def without_room():
    """Let what is started meanwhile make no file as large as the shared memory of the metrics."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_without_room_for_the_page_the_server_serves_and_says_so_once(start_server, without_room):
    server = start_server("--stub", "--profile", "all", "--api-server-count", "2")
    assert not shared_memory_path(server.run_dir, LAYOUT).exists()
    wait_for(lambda: num_connections(server) == 2)
    assert [server.text(f"hello {i}", max_tokens=3) for i in range(8)]
    server.http_workers()[0].kill()
    wait_for(lambda: num_connections(server) == 3)
    assert server.text("again", max_tokens=3)
    assert server.get("/api/v1/metrics").status_code == 200
    assert "qwenapi_ledger_shared 0" in server.get("/metrics/prometheus").text
    assert server.log.count("keeps its own numbers") == 1
    assert "Traceback" not in server.log and "SIGBUS" not in server.log
