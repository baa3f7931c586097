"""A Ray cluster for tests: a head and nodes as processes of this machine, each with an address of
its own on loopback.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.running_server import wait_for

RAY = str(Path(sys.executable).with_name("ray"))
# A head notices a lost node in seconds; usual are 15 or more.
ENVIRON = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class RayNode:
    """`ray start`, kept in the foreground."""

    def __init__(self, name, host, log, *flags):
        self.name = name
        self.log = log
        options = {
            "node-name": name,
            "node-ip-address": host,
            "object-store-memory": 80_000_000,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "dashboard-agent-listen-port": 0,
        }
        command = [RAY, "start", "--block", "--disable-usage-stats", *flags]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *(f"--{key}={value}" for key, value in options.items())],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRON,
                start_new_session=True,
            )

    def wait_until_up(self):
        """Wait until it has joined; of two that start at once, both would take the same sockets."""
        said = self.log.read_text
        wait_for(lambda: "Ray runtime started" in said() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, said()

    def processes(self):
        """Return it and all that it has started, engines included."""
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def raylet(self):
        found = (one for one in self.processes() if "raylet" in one.name())
        return next(found, None)

    def kill_raylet(self):
        """Let the node be lost; return what ran there, each with its command line as `info`."""
        processes = self.processes()
        for process in processes:
            process.info = process.cmdline()
        self.raylet().kill()
        return processes

    def stop(self):
        processes = self.processes()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=3)
        for process in alive:
            process.kill()
        self.process.wait(10)


class RayNodes:
    """A head without any CPU for engines, and nodes with room for an engine each."""

    def __init__(self, folder):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.address = f"127.0.0.20:{self.port}"
        # Ray's own sockets lie below it, whose paths have a limit.
        self.temp = tempfile.mkdtemp(prefix="ray-")
        flags = (f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false")
        head = RayNode("head", "127.0.0.20", folder / "head.log", "--head", *flags,
                       f"--temp-dir={self.temp}")  # fmt: skip
        self.nodes = {"head": head}

    def add(self, name, number):
        """Start a node, or start it again."""
        if name in self.nodes:
            self.nodes[name].stop()
        log = self.folder / f"{name}-{len(list(self.folder.glob(name + '-*')))}.log"
        flags = (f"--address={self.address}", "--num-cpus=1")
        self.nodes[name] = RayNode(name, f"127.0.0.{number}", log, *flags)
        return self.nodes[name]

    def stop(self):
        for node in reversed(self.nodes.values()):
            node.stop()
        shutil.rmtree(self.temp, ignore_errors=True)
