"""EngineHost: keeps one engine process on a node of a cluster; Ray makes an actor of it there.

The engine is a process of its own, started, watched and spoken to as on the supervisor's machine;
it ends with this one. Of an engine whose ranks are on several nodes it is the first rank's: the
others have a RankHost each. Knows nothing of Ray. Its calls return at once, but for the start,
which may have to fetch the model.
"""

import fcntl
import ipaddress
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import psutil

from qwenapi.cluster.job import restored
from qwenapi.cluster.wire_tls import wire_tls
from qwenapi.doctor.memory import visible_gpus
from qwenapi.doctor.report import check_model, refuse_unfit
from qwenapi.hub.fetch import with_local_model
from qwenapi.settings.run_dir import make_run_dir, user_folder
from qwenapi.settings.table import Settings
from workers import logs
from workers.config import EngineConfig
from workers.errors import ConfigError, WorkerError
from workers.supervisor.engine_child import EngineChild
from workers.supervisor.supervisor import lock_run_dir
from workers.wire.endpoint import Endpoint
from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.shared_memory import SharedMemory
from workers.wire.shared_memory_files import remove_shared_memory, shared_memory_path
from workers.worker.tcp_door import DoorSpec
from workers.worker.worker_spec import WorkerSpec


class EngineHost:
    """One engine of a cluster, from `start` to its exit."""

    def __init__(self) -> None:
        be_no_script()
        self._child: EngineChild | None = None
        self._endpoint: Endpoint | None = None
        self._exit: int | None = None
        self._failure: str | None = None
        self._progress: tuple[str, float] = ("", 0.0)

    def start(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Start the engine; what is wrong is told as its exit would be."""
        try:
            self._start(job)
        except WorkerError as error:
            self._exit, self._failure = int(error.exit_code), str(error)
        return self.look()

    def look(self) -> dict[str, Any]:
        """Return how the engine is."""
        child = self._child
        if child is None:
            return {"exit": self._exit, "failure": self._failure}
        return {
            "exit": child.poll(),
            "failure": child.failure,
            "pid": child.pid,
            "is_ready": child.is_ready(),
            "hang": child.hang(),
            "progress": self._progress,
            "rendezvous": child.rendezvous,
            "endpoint": self.endpoint(),
        }

    def endpoint(self) -> dict[str, Any] | None:
        """Return where the engine can be reached, once it can be."""
        if self._child is None or self._endpoint is None:
            return None
        self._child.poll()
        if not self._child.is_ready():
            return None
        found: dict[str, Any] = msgspec.to_builtins(
            msgspec.structs.replace(self._endpoint, port=self._child.port)
        )
        return found

    def signal(self, name: str) -> None:
        """`terminate`, `dump` or `kill` the engine."""
        if self._child is not None:
            getattr(self._child, name)()

    def _start(self, job: Mapping[str, Any]) -> None:
        settings = prepared(job)
        tls = wire_tls(settings)
        folder, engine = _own_folder(), int(job["engine"])
        memory = SharedMemory.create(
            shared_memory_path(folder, ENGINE_LAYOUT), ENGINE_LAYOUT, engine + 1
        )
        # Its counters go on where the engine before it was lost, wherever that was.
        memory.lease(engine).write(job["slot"])
        memory.release(engine)
        door = DoorSpec(job["host"], bytes.fromhex(job["secret"]), tls)
        config = config_of(settings, job)
        self._endpoint = Endpoint(
            host=job["host"],
            port=0,
            secret=door.secret,
            node=job["node"],
            uses_tls=tls is not None,
        )
        spec = WorkerSpec(engine, folder, memory.path, door, job["node"])
        child = EngineChild(config, spec, memory, self._on_progress)
        child.start()
        self._child = child

    def _on_progress(self, name: str, what: str, fraction: float) -> None:
        self._progress = (what, fraction)


def be_no_script() -> None:
    """Let processes be spawned by one of Ray's, whose script they would run again first."""
    vars(sys.modules["__main__"]).pop("__file__", None)


def prepared(job: Mapping[str, Any]) -> Settings:
    """Return the settings of an engine once its model is on this node; raise ConfigError."""
    settings = restored(job)
    logs.configure(f"host of engine-{job['engine']}", settings.log_level, settings.log_format)
    settings = with_local_model(settings, lambda line: print(line, file=sys.stderr))
    settings = with_device(settings, job["num_gpus"], job["node"])
    refuse_unfit(settings, num_local_ranks=job["num_local_ranks"])
    return settings


def with_device(settings: Settings, num_gpus: float, node: str) -> Settings:
    """Return them for a place with so many GPUs: `auto` is what is there, and no other.

    Raises ConfigError where the place has GPUs that this machine has not: an engine would compute
    on its CPUs and keep them. One beside its place would share others'.
    """
    if settings.device != "auto" or settings.stub:
        return settings
    if num_gpus and not visible_gpus():
        raise ConfigError(
            f"Ray gives the engine {num_gpus:g} GPU of node {node}, whose driver shows none: mend"
            " it, let Ray start there with --num-gpus=0, or set --device cpu"
        )
    return replace(settings, device="cuda" if num_gpus else "cpu")


def config_of(settings: Settings, job: Mapping[str, Any]) -> EngineConfig:
    """Return what the first of its ranks on this node is to be started with."""
    num_local_ranks = job["num_local_ranks"]
    config = replace(
        settings.engine_config(), threads=settings.threads or 1, num_local_ranks=num_local_ranks
    )
    if num_local_ranks == settings.tensor_parallel_size:
        return config
    return replace(config, interface=_interface_of(job["host"]))


def check_node(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the doctor says of the model on this node, and of so many ranks."""
    checks = check_model(restored(job), num_local_ranks=job["num_local_ranks"])
    return [asdict(check) for check in checks]


def _interface_of(host: str) -> str:
    """Return the network interface that has an address."""
    address = ipaddress.ip_address(socket.gethostbyname(host) if ":" not in host else host)
    for name, found in psutil.net_if_addrs().items():
        for one in found:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                own = ipaddress.ip_interface(one.address.partition("%")[0])
                if own.ip == address or (address.is_loopback and own.ip.is_loopback):
                    return str(name)
    raise ConfigError(
        f"{host}: no network interface here has this address of the node, which ranks on others"
        " are to find; start this node with one: ray start --node-ip-address"
    )


def _own_folder() -> Path:
    """Return a new run folder of this process, and remove those whose processes have ended."""
    parent = user_folder(os.environ) / "cluster"
    make_run_dir(parent)
    # One at a time, or another's new folder would be taken for a lost one's before it is locked.
    parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(parent_fd, fcntl.LOCK_EX)
    try:
        for old in parent.iterdir():
            _remove_if_lost(old)
        folder = parent / secrets.token_hex(8)
        make_run_dir(folder)
        lock_run_dir(folder)
    finally:
        os.close(parent_fd)
    return folder


def _remove_if_lost(folder: Path) -> None:
    try:
        fd = lock_run_dir(folder)
    except ConfigError:
        return  # its process lives
    remove_shared_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)
    os.close(fd)
