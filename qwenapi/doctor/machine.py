"""Checks of the machine: address, folders, shared memory, descriptors, clock, libraries."""

import os
import re
import resource
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil

from qwenapi.doctor.check import Check, failure, gib, ok, refused, warning
from qwenapi.metrics.layout import NUM_SLOTS, metrics_layout
from qwenapi.observability.tracing import check_endpoint
from qwenapi.settings.run_dir import MAX_SOCKET_PATH_BYTES, run_dir, state_dir
from qwenapi.settings.table import Settings, etc_dir
from workers.errors import ConfigError
from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.layout import INT_BYTES
from workers.wire.shared_memory_files import shared_memory_path

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
# One for each of gunicorn's worker_connections, and what a process needs for itself.
DESCRIPTORS = 4000 + 200
MIN_STATE_BYTES = 100 << 20
FIRST_YEAR, LAST_YEAR = 2025, 2100
DISTRIBUTION = "qwenapi"


def check_machine(settings: Settings, profiles: Sequence[str]) -> Iterator[Check]:
    """Look at everything but the model, which `qwenapi serve` would need."""
    yield from check_address(settings)
    yield check_run_dir(settings)
    yield check_shared_memory(settings, profiles)
    yield check_state_dir(settings)
    yield check_descriptors()
    yield check_clock()
    yield check_python()
    yield from check_libraries()
    if settings.otel_endpoint:
        yield check_traces(settings)


def check_address(settings: Settings) -> Iterator[Check]:
    """Bind and let go; where another process listens, name it."""
    if settings.uds:
        yield _check_unix_socket(Path(settings.uds).expanduser().absolute())
        return
    place = f"{settings.host}:{settings.port}"
    remedy = "choose another --host or --port"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        owner = _listener_on(settings.port)
        why = f"{error.strerror}{f', by pid {owner}' if owner else ''}"
        yield failure("address", f"cannot listen on {place}", why, remedy)
        return
    yield ok("address", f"{place} is free")


def check_run_dir(settings: Settings) -> Check:
    try:
        folder = run_dir(settings, "serve")
    except ConfigError as error:
        return refused("run folder", error)
    existing = _nearest(folder)
    if not _is_writable(existing):
        why = f"{existing} is no writable folder"
        return failure("run folder", str(folder), why, "set --run-dir")
    return ok("run folder", f"{folder} is writable, its socket paths are short enough")


def check_shared_memory(settings: Settings, profiles: Sequence[str]) -> Check:
    """See that shared memory has room where it will lie."""
    try:
        folder = _nearest(shared_memory_path(run_dir(settings, "serve"), ENGINE_LAYOUT).parent)
    except ConfigError as error:
        return refused("shared memory", error)
    layouts = ((metrics_layout(tuple(profiles)), NUM_SLOTS), (ENGINE_LAYOUT, 999))
    needed = sum(INT_BYTES * layout.start(slots) for layout, slots in layouts)
    free = shutil.disk_usage(folder).free
    if free < needed:
        return failure(
            "shared memory",
            f"{gib(free)} are free in {folder}",
            f"the processes take {gib(needed)} of it",
            f"make room there, or mount it larger: mount -o remount,size=1G {folder}",
        )
    return ok("shared memory", f"{gib(free)} are free in {folder}, {gib(needed)} are needed")


def check_state_dir(settings: Settings) -> Check:
    folder = state_dir(settings)
    existing = _nearest(folder)
    if not _is_writable(existing):
        why = f"{existing} is no writable folder"
        return failure("state folder", str(folder), why, "set --state-dir")
    free = shutil.disk_usage(existing).free
    if free < MIN_STATE_BYTES:
        return warning(
            "state folder",
            str(folder),
            f"only {gib(free)} are free",
            "make room, or set --state-dir: without room no conversation is kept",
        )
    return ok("state folder", f"{folder} is writable, {gib(free)} are free")


def check_descriptors() -> Check:
    limit, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < DESCRIPTORS:
        remedy = f"run ulimit -n {DESCRIPTORS}, or set LimitNOFILE={DESCRIPTORS} in the unit"
        if 0 <= ceiling < DESCRIPTORS:
            remedy += f"; the hard limit of {ceiling} must be raised first"
        return warning(
            "descriptors",
            f"{limit} open files are allowed",
            f"a full HTTP process has {DESCRIPTORS}",
            remedy,
        )
    return ok("descriptors", f"{limit if limit >= 0 else 'any number of'} open files are allowed")


def check_clock(now: float | None = None) -> Check:
    year = time.gmtime(now).tm_year
    if not FIRST_YEAR <= year <= LAST_YEAR:
        return warning(
            "clock",
            f"the clock says the year {year}",
            "conversations would end too early or never, and logs have wrong times",
            "set it, by NTP for example",
        )
    return ok("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def check_python() -> Check:
    found = sys.version_info[:2]
    shown = ".".join(map(str, sys.version_info[:3]))
    if found < OLDEST_PYTHON:
        return failure("Python", f"Python {shown}", "too old", "install Python 3.11 or newer")
    if found > NEWEST_PYTHON:
        return warning(
            "Python", f"Python {shown}", "newer than any this was tried with", "use 3.11 to 3.13"
        )
    return ok("Python", f"Python {shown}")


def check_libraries() -> Iterator[Check]:
    """Compare what is installed with the versions this was tested with."""
    pins = _pins(etc_dir() / "constraints.txt")
    wrong: list[str] = []
    for name in _required():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield failure(
                "libraries", f"{name} is not installed", "qwenapi needs it", f"pip install {name}"
            )
            continue
        pin = pins.get(_normal(name))
        if pin and pin != found.split("+")[0]:  # torch 2.13.0+cpu is a 2.13.0
            wrong.append(f"{name} {found} instead of {pin}")
    if wrong:
        yield warning(
            "libraries", ", ".join(wrong), "not the versions this was tested with", "run bin/setup"
        )
    elif not pins:
        yield ok("libraries", "all are installed; this installation has no list of versions")
    else:
        yield ok("libraries", "all are installed, in the versions this was tested with")


def check_traces(settings: Settings) -> Check:
    try:
        check_endpoint(settings.otel_endpoint)
    except ConfigError as error:
        return refused("traces", error)
    return ok("traces", f"go to {settings.otel_endpoint}")


def _check_unix_socket(path: Path) -> Check:
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        why = f"it takes {size} bytes, the system allows {MAX_SOCKET_PATH_BYTES}"
        return failure("address", f"cannot listen on {path}", why, "choose a shorter --uds")
    if not _is_writable(path.parent):
        why = f"{path.parent} is no writable folder"
        return failure("address", f"cannot listen on {path}", why, "choose another --uds")
    if path.exists() and not path.is_socket():
        return failure("address", f"cannot listen on {path}", "it is no socket", "remove the file")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        if path.exists() and probe.connect_ex(str(path)) == 0:
            return failure("address", f"cannot listen on {path}", "another server does", "stop it")
    return ok("address", f"{path} is free")


def _listener_on(port: int) -> int | None:
    """Return the process that listens on a port, if this user may know."""
    try:
        found = psutil.net_connections("tcp")
    except psutil.Error:
        return None
    pids = (c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr.port == port)
    return next(pids, None)


def _nearest(path: Path) -> Path:
    """Return the path or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _required() -> list[str]:
    """Return what setup.cfg asks for, extras left out."""
    lines = [line for line in requires(DISTRIBUTION) or () if "extra ==" not in line]
    return [re.split(r"[\[<>=!~; ]", line)[0] for line in lines]


def _pins(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    lines = (line.partition("==") for line in file.read_text(encoding="utf-8").splitlines())
    return {_normal(name): pin for name, _, pin in lines if pin}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
