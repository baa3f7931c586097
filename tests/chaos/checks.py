"""What must hold when chaos is over, and what was measured meanwhile."""

import json
import re
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from qwenapi.metrics.layout import metrics_layout
from qwenapi.metrics.snapshot import Counts, take_snapshot
from tests.chaos.accounts import Account
from tests.chaos.callers import Crowd
from tests.chaos.faults import BREAKING_TURNS, CUTTING
from tests.chaos.world import World
from tests.metrics.test_truth import PROFILES, difference
from tests.running_server import wait_for
from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.shared_memory import SharedMemory
from workers.wire.shared_memory_files import shared_memory_path

SAMPLE_SECONDS = 1.0
# Of one process after its first minute, or third of its life: what a run may add by chance.
MAX_GROWTH_BYTES = 40e6
MAX_BYTES_PER_HOUR = 30e6  # judged where a process has lived for half an hour
SPARE_DESCRIPTORS = 8


class Memory:
    """Samples of the resident memory of every process, taken in a thread."""

    def __init__(self, world: World) -> None:
        self.samples: dict[int, list[tuple[float, int]]] = {}
        self._world, self._is_over = world, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(30)

    def slopes(self) -> list[dict[str, float]]:
        """Return of each process that lived long enough how its memory grew after its warm-up."""
        found = []
        for pid, samples in self.samples.items():
            seconds = samples[-1][0] - samples[0][0]
            warm = [one for one in samples if one[0] - samples[0][0] >= min(60, seconds / 3)]
            if seconds < 20 or len(warm) < 10:
                continue
            slope = statistics.linear_regression(*zip(*warm, strict=True)).slope
            third = len(warm) // 3
            first, last = warm[:third], warm[-third:]
            growth = statistics.median(b for _, b in last) - statistics.median(b for _, b in first)
            found.append(
                {
                    "pid": pid,
                    "seconds": round(seconds),
                    "bytes_per_hour": round(slope * 3600),
                    "growth_bytes": round(growth),
                    "bytes": samples[-1][1],
                }
            )
        return found

    def _run(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            try:
                for process in self._world.server.tree():
                    sample = (time.monotonic(), process.memory_info().rss)
                    self.samples.setdefault(process.pid, []).append(sample)
            except psutil.Error:
                pass  # it has just ended


def check_answers(crowd: Crowd, faults: list[tuple[float, float, str]]) -> list[str]:
    """Return what is wrong with the answers; a cut one is excused by a fault that cuts."""
    wrong = list(crowd.record.wrong)
    for moment, name, words in crowd.record.cut:
        causes = CUTTING | (BREAKING_TURNS if name == "turn" else {})
        # An answer that was long under way when its process went is excused as well.
        if not any(
            kind in causes and moment < end + causes[kind] and start < moment + 120
            for start, end, kind in faults
        ):
            wrong.append(f"cut without a cause: {name} {words}")
    return wrong


def check_conversations(world: World, crowd: Crowd) -> list[str]:
    """Return which acknowledged turns are not kept, whole and in order."""
    wrong = []
    for conversation, acknowledged in crowd.conversations.items():
        answer = world.get(f"/v1/code/conversations/{conversation}")
        if answer.status_code != 200:
            wrong.append(f"conversation {conversation}: {answer.status_code} {answer.text[:100]}")
            continue
        contents = [message["content"] for message in answer.json()["messages"]]
        turns = list(zip(contents[::2], contents[1::2], strict=True))
        left = iter(turns)
        if not all(turn in left for turn in acknowledged):
            wrong.append(f"conversation {conversation}: kept {turns!r}, told {acknowledged!r}")
        if len(set(contents[::2])) != len(turns) or not all(kept for _, kept in turns):
            wrong.append(f"conversation {conversation}: doubled or empty turns in {turns!r}")
    return wrong


def counts(world: World) -> dict[str, Counts]:
    """Return what the metrics store says of each profile."""
    layout = metrics_layout(PROFILES)
    memory = SharedMemory.open(shared_memory_path(world.server.run_dir, layout), layout)
    try:
        return dict(take_snapshot(memory, PROFILES).profiles)
    finally:
        memory.close()


def accounts(world: World, before: dict[str, Counts], crowd: Crowd) -> dict[str, Account]:
    """Return both sides of every profile's account; `before` is what was counted before chaos."""
    told = crowd.record.told
    return {
        profile: Account(
            [one for one in told if one.profile == profile], difference(before[profile], now)
        )
        for profile, now in counts(world).items()
    }


def check_rest(world: World, memory: Memory) -> list[str]:
    """Return what a service at rest still holds, and how it does not end as it should."""
    wrong = []
    for index in range(2):
        row = world.server.row(index)
        if row["running"] or row["waiting"] or row["free_blocks"] != row["total_blocks"]:
            wrong.append(f"engine {index} holds what nobody asked for: {row}")
    for grown in memory.slopes():
        is_long = grown["seconds"] > 1800
        if grown["growth_bytes"] > MAX_GROWTH_BYTES and not is_long:
            wrong.append(f"memory grew: {grown}")
        if is_long and grown["bytes_per_hour"] > MAX_BYTES_PER_HOUR:
            wrong.append(f"memory grows: {grown}")
    return wrong


def descriptors(world: World) -> dict[str, int]:
    """Return the most descriptors that processes of each kind have open."""
    most: dict[str, int] = {}
    for process in world.server.tree():
        kind = kind_of(process)
        most[kind] = max(most.get(kind, 0), process.num_fds())
    return most


def check_descriptors(world: World, before: dict[str, int]) -> list[str]:
    """Return which kinds of process have more open than at the beginning, at rest."""

    def grown() -> list[str]:
        now = descriptors(world)
        return [
            f"{kind}: {now[kind]} descriptors, {before[kind]} at the beginning"
            for kind in before
            if now.get(kind, 0) > before[kind] + SPARE_DESCRIPTORS
        ]

    try:
        wait_for(lambda: not grown(), 30)
    except AssertionError:
        return grown()
    return []


def kind_of(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    if "serving.server" in words:
        return "HTTP"
    return "engine" if "spawn_main" in words else "other"


def check_end(world: World) -> list[str]:
    """End the service by a drain under its last callers; return what it leaves behind."""
    wrong = []
    processes = world.server.tree()
    mine = shared_memory_path(world.server.run_dir, ENGINE_LAYOUT).name.split("-engine-")[0]
    code = world.server.stop(90)
    if code != 0:
        wrong.append(f"it ended with {code}")
    if left := [process.pid for process in processes if process.is_running()]:
        wrong.append(f"processes are left: {left}")
    if sockets := [path.name for path in Path(world.server.run_dir).glob("*.sock")]:
        wrong.append(f"sockets are left: {sockets}")
    if files := [path.name for path in Path("/dev/shm").glob(f"{mine}-*")]:
        wrong.append(f"shared memory is left: {files}")
    tracebacks = re.findall(r"Traceback[^\x00]{0,1500}", world.server.log)
    # gevent prints what accept raised where there was no descriptor.
    unexpected = [one for one in tracebacks if "Too many open files" not in one]
    return wrong + [f"a traceback in the log: {one[:1200]}" for one in unexpected[:3]]


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def as_markdown(report: dict[str, Any]) -> str:
    """Return a run's figures as a table of two columns."""
    rows = []
    for name, value in report.items():
        shown = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        rows.append(f"| {name} | {shown} |")
    return "\n".join(["| figure | value |", "|---|---|", *rows, ""])
