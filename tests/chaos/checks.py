"""What must hold when chaos is over, and what was measured meanwhile."""

import json
import re
from pathlib import Path
from typing import Any

from qwenapi.metrics.layout import metrics_layout
from qwenapi.metrics.snapshot import Counts, take_snapshot
from tests.chaos.accounts import Account
from tests.chaos.callers import Crowd
from tests.chaos.faults import BREAKING_TURNS, CUTTING
from tests.chaos.world import World, kind_of
from tests.metrics.test_truth import PROFILES, difference
from tests.running_server import wait_for
from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.shared_memory import SharedMemory
from workers.wire.shared_memory_files import shared_memory_path

SPARE_DESCRIPTORS = 8


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


def check_rest(world: World) -> list[str]:
    """Return what a service at rest still holds."""
    wrong = []
    for index in range(2):
        row = world.server.row(index)
        if row["running"] or row["waiting"] or row["free_blocks"] != row["total_blocks"]:
            wrong.append(f"engine {index} holds what nobody asked for: {row}")
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
    tracebacks = re.findall(r"Traceback[^\x00]{0,1500}", world.log)
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
