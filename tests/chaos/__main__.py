"""Chaos: faults of all kinds at random under callers of all dialects, and whether promises hold.

    python -m tests.chaos --seconds 7200 --seed 1 --model demo --report chaos.json

The seed settles which faults are done and when; the last line repeats the run. The report is JSON,
and beside it the same as Markdown. Ends with 1 if anything was wrong, and says what.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.chaos import checks
from tests.chaos.asks import every_ask
from tests.chaos.callers import Crowd
from tests.chaos.faults import faults_of, left_out
from tests.chaos.memory import Memory, check_growths
from tests.chaos.world import MODELS, World, world
from tests.running_server import wait_for

PAUSE_SECONDS = (0.5, 3.0)  # between two faults
QUIET_SECONDS = 5.0  # without a fault before the callers stop
REST_SECONDS = 60.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", choices=MODELS, default="stub")
    parser.add_argument("--conversations", choices=("sqlite", "redis"), default="sqlite")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--only", nargs="*", help="do these faults alone, by name")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        report = run(Path(folder), parsed)
    print(checks.as_markdown(report))
    if parsed.report:
        text = json.dumps(report, indent=2, ensure_ascii=False)
        parsed.report.write_text(text + "\n", encoding="utf-8")
        parsed.report.with_suffix(".md").write_text(checks.as_markdown(report), encoding="utf-8")
    return 1 if report["wrong"] else 0


def run(folder: Path, parsed: argparse.Namespace) -> dict[str, Any]:
    """Start the service, learn the undisturbed answers, do the chaos; return the figures."""
    with world(folder, parsed.model, parsed.conversations) as here:
        asks = every_ask(parsed.model)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda ask: ask.learn(here), asks))
        wait_until_idle(here)
        before, open_before = checks.counts(here), checks.descriptors(here)
        crowd, memory = Crowd(here, asks, parsed.seed), Memory(here)
        crowd.start()
        try:
            done = disturb(here, crowd, parsed)
            settle(here)
        finally:
            crowd.stop()
        wrong = checks.check_answers(crowd, done)
        wrong += wait_until_idle(here)
        wrong += checks.check_conversations(here, crowd)
        wrong += wait_until_idle(here)
        memory.stop()
        accounts = checks.accounts(here, before, crowd)
        for profile, account in accounts.items():
            wrong += [
                f"{profile}: {no} does not add up: {account.figures}" for no in account.check()
            ]
        wrong += checks.check_rest(here) + check_growths(memory.growths())
        wrong += checks.check_descriptors(here, open_before)
        starts = sum(here.server.row(index)["starts"] for index in range(2))
        wrong += checks.check_end(here)
        if wrong:
            (Path(tempfile.gettempdir()) / "chaos.log").write_text(here.log, "utf-8")
        sums = {name: account.figures for name, account in accounts.items() if account.told}
        found = figures(here, parsed, crowd, done, memory, wrong)
        return found | {"accounts": sums, "engine starts": starts}


def disturb(
    here: World, crowd: Crowd, parsed: argparse.Namespace
) -> list[tuple[float, float, str]]:
    """Do faults until the time is over; return begin, end and name of each."""
    dice, faults = random.Random(parsed.seed), faults_of(here)
    names = [name for name in faults if not parsed.only or name in parsed.only]
    deadline, done, waiting = time.monotonic() + parsed.seconds, [], list[str]()
    time.sleep(2)
    while time.monotonic() < deadline:
        if not waiting:  # each comes as often, in an order of its own every time
            waiting = dice.sample(names, len(names))
        name, began = waiting.pop(), time.monotonic()
        faults[name](here, crowd, dice)
        done.append((began, time.monotonic(), name))
        time.sleep(min(dice.uniform(*PAUSE_SECONDS), max(0, deadline - time.monotonic())))
    return done


def settle(here: World) -> None:
    """Wait until all is up again, and some time more."""
    wait_for(lambda: is_ready(here), 120, lambda: here.log[-3000:])
    time.sleep(QUIET_SECONDS)


def is_ready(here: World) -> bool:
    try:
        return here.get("/readyz").status_code == 200
    except OSError:
        return False


def wait_until_idle(here: World) -> list[str]:
    try:
        for index in range(2):
            wait_for(lambda index=index: is_idle(here, index), REST_SECONDS)
    except AssertionError:
        rows = [here.server.row(index) for index in range(2)]
        return [f"not at rest within {REST_SECONDS:g} s: {rows}"]
    return []


def is_idle(here: World, index: int) -> bool:
    row = here.server.row(index)
    is_free = row["free_blocks"] == row["total_blocks"]
    return bool(row["running"] == row["waiting"] == 0 and is_free and row["total_blocks"])


def figures(
    here: World,
    parsed: argparse.Namespace,
    crowd: Crowd,
    done: Any,
    memory: Memory,
    wrong: list[str],
) -> dict[str, Any]:
    record = crowd.record
    health = [round(1000 * checks.percentile(record.health, part), 1) for part in (0.5, 0.99, 1)]
    growths = memory.growths()
    options = f"--seconds {parsed.seconds:g} --seed {parsed.seed} --model {parsed.model}"
    return {
        "repeat": f"python -m tests.chaos {options} --conversations {parsed.conversations}",
        "requests": record.num_requests,
        "whole": record.whole.total(),
        "whole by kind": dict(record.whole),
        "refused or failed as documented": dict(record.documented),
        "left by their callers": dict(record.left),
        "cut by a fault that cuts": len(record.cut),
        "conversations": len(crowd.conversations),
        "faults": dict(Counter(name for _, _, name in done)),
        "faults left out": left_out(here),
        "memory taken, GB": [round(taken / 1e9, 1) for taken in record.taken],
        "health ms p50, p99, most": health,
        "slowest turn of a conversation, s": round(record.slowest_turn, 1),
        "memory: most growth of a process, MB": round(
            max((one["growth_bytes"] for one in growths), default=0) / 1e6, 1
        ),
        "memory by process": growths,
        "wrong": wrong[:20],
    }


if __name__ == "__main__":
    sys.exit(main())
