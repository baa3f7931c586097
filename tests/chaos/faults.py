"""Faults: what is done to a service while it answers; each is over when it returns.

Those named in CUTTING may break connections: a HTTP process that is killed takes its streams along.
Those in BREAKING_TURNS may break those of turns, for so many seconds after their end.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import psutil

from tests.chaos.callers import Crowd
from tests.chaos.memory import MIN_PRESSURE_BYTES, pressure, room
from tests.chaos.world import World, is_free, kind_of

Fault = Callable[[World, Crowd, random.Random], None]
# After which connections may be broken for so many seconds.
CUTTING = {
    "kill a HTTP worker": 20.0,
    "kill the arbiter": 20.0,
    "stop a HTTP worker": 10.0,
    "kill the supervisor": 5.0,
}
# A turn of a conversation that cannot be kept is broken off: its dialect is plain text, and has no
# other word for it.
BREAKING_TURNS = {"fill the disk": 5.0, "restart Redis": 5.0}
HOUR = 3600


def engine_pid(world: World, dice: random.Random) -> int | None:
    pid = world.server.row(dice.randrange(2))["pid"]
    return pid if pid in {process.pid for process in world.server.tree()} else None


def send(pid: int | None, number: int) -> None:
    try:
        if pid:
            os.kill(pid, number)
    except ProcessLookupError:
        pass


def kill_an_engine(world: World, crowd: Crowd, dice: random.Random) -> None:
    send(engine_pid(world, dice), signal.SIGKILL)


def kill_both_engines(world: World, crowd: Crowd, dice: random.Random) -> None:
    for index in range(2):
        send(world.server.row(index)["pid"], signal.SIGKILL)


def stop_an_engine(world: World, crowd: Crowd, dice: random.Random) -> None:
    send(engine_pid(world, dice), signal.SIGSTOP)


def pause_an_engine(world: World, crowd: Crowd, dice: random.Random) -> None:
    pid = engine_pid(world, dice)
    send(pid, signal.SIGSTOP)
    time.sleep(dice.uniform(0.2, 1.5))
    send(pid, signal.SIGCONT)


def kill_a_worker(world: World, crowd: Crowd, dice: random.Random) -> None:
    if workers := world.server.http_workers():
        send(dice.choice(workers).pid, signal.SIGKILL)


def stop_a_worker(world: World, crowd: Crowd, dice: random.Random) -> None:
    if workers := world.server.http_workers():
        pid = dice.choice(workers).pid
        send(pid, signal.SIGSTOP)
        time.sleep(dice.uniform(0.2, 2.0))
        send(pid, signal.SIGCONT)


def kill_the_arbiter(world: World, crowd: Crowd, dice: random.Random) -> None:
    arbiters = {worker.ppid() for worker in world.server.http_workers() if worker.is_running()}
    for pid in arbiters:
        send(pid, signal.SIGKILL)
    time.sleep(2)


def reload(half: str) -> Fault:
    def fault(world: World, crowd: Crowd, dice: random.Random) -> None:
        named = ["--run-dir", str(world.server.run_dir)]
        command = [sys.executable, "-m", "qwenapi", "reload", *([half] if half else []), *named]
        # Refused where another fault is not over yet: that is an answer too.
        subprocess.run(command, capture_output=True, timeout=900, check=False)

    return fault


def burst(world: World, crowd: Crowd, dice: random.Random) -> None:
    crowd.burst(dice.choice([20, 60]))


def disable_a_key(world: World, crowd: Crowd, dice: random.Random) -> None:
    crowd.may_be_refused.set()
    world.set_disabled("b", is_disabled=True)
    time.sleep(dice.uniform(1, 3))
    world.set_disabled("b", is_disabled=False)
    time.sleep(2)  # until the last process has looked


def set_the_clock(world: World, crowd: Crowd, dice: random.Random) -> None:
    assert world.clock
    world.clock.set_back_or_forth(dice.choice([HOUR, -HOUR]))
    time.sleep(2)
    world.clock.set_back_or_forth(0)


def fill_the_disk(world: World, crowd: Crowd, dice: random.Random) -> None:
    assert world.disk
    filler = world.disk / "filler"
    try:
        with filler.open("wb") as file:
            while True:
                file.write(bytes(64 * 1024))
                file.flush()
    except OSError:
        pass
    time.sleep(2)
    filler.unlink(missing_ok=True)


def restart_redis(world: World, crowd: Crowd, dice: random.Random) -> None:
    assert world.redis
    world.redis.stop()
    time.sleep(dice.uniform(0.1, 2))
    world.redis.start()


def take_descriptors(world: World, crowd: Crowd, dice: random.Random) -> None:
    workers = world.server.http_workers()
    if not workers:
        return
    worker = dice.choice(workers)
    try:
        limit = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (worker.num_fds() + 2, limit[1]))
        time.sleep(2)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limit)
    except (psutil.Error, ProcessLookupError):
        pass  # another fault has ended it


def take_memory(world: World, crowd: Crowd, dice: random.Random) -> None:
    with pressure() as taken:
        crowd.record.taken.append(taken)
        time.sleep(dice.uniform(2, 5))


def kill_the_supervisor(world: World, crowd: Crowd, dice: random.Random) -> None:
    """Kill `serve` itself, which must take all with it, and start it again in the same place."""
    processes, kinds = world.server.tree(), {}
    for process in processes:
        with suppress(psutil.Error):
            kinds[process.pid] = kind_of(process)
    world.server.process.kill()
    _, alive = psutil.wait_procs(processes, timeout=20)
    if alive:
        left = [kinds.get(process.pid) for process in alive]
        crowd.record.wrong.append(f"outlived their supervisor by 20 s: {left}")
    if not is_free(urlsplit(world.url).port or 0):
        crowd.record.wrong.append("a killed supervisor left its port taken")
    time.sleep(dice.uniform(0, 2))
    world.start_again()


def faults_of(world: World) -> dict[str, Fault]:
    """Return the faults that can be done here, by name."""
    faults: dict[str, Fault] = {
        "kill an engine": kill_an_engine,
        "kill both engines": kill_both_engines,
        "stop an engine": stop_an_engine,
        "pause an engine": pause_an_engine,
        "kill a HTTP worker": kill_a_worker,
        "stop a HTTP worker": stop_a_worker,
        "kill the arbiter": kill_the_arbiter,
        "reload the HTTP half": reload(""),
        "reload the model half": reload("model"),
        "burst": burst,
        "disable a key": disable_a_key,
        "take descriptors": take_descriptors,
        "kill the supervisor": kill_the_supervisor,
    }
    if room() >= MIN_PRESSURE_BYTES:
        faults["take memory"] = take_memory
    if world.clock:
        faults["set the clock"] = set_the_clock
    if world.disk and not world.redis:
        faults["fill the disk"] = fill_the_disk
    if world.redis:
        faults["restart Redis"] = restart_redis
    return faults


def left_out(world: World) -> dict[str, str]:
    """Return the faults that cannot be done here, and why."""
    reasons = {
        "set the clock": "" if world.clock else "no C compiler",
        "fill the disk": "" if world.disk and not world.redis else "no root, or Redis instead",
        "restart Redis": "" if world.redis else "SQLite instead",
        "take memory": "" if room() >= MIN_PRESSURE_BYTES else "too little to take any",
    }
    return {name: reason for name, reason in reasons.items() if reason}
