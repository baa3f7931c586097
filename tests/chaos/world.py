"""World: the service under chaos and what stands around it: keys, clock, Redis, a small disk."""

import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import psutil
import requests

from qwenapi.keys import key_file
from qwenapi.keys.key import Key, new_key
from qwenapi.settings.table import etc_dir
from tests.clock import HAS_COMPILER, Clock
from tests.running_server import RunningServer, wait_for

DEMO = etc_dir() / "models" / "demo"
DISK_BYTES = 24 * 1024 * 1024
TURN_TOKENS = 24  # at most, of what names no number
MODELS = ("stub", "demo", "hybrid")


class Redis:
    """A Redis server of its own, which may be restarted; what it has acknowledged is on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._socket = folder, folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        options = "--port 0 --save  --appendonly yes --appendfsync always --logfile redis.log"
        place = ("--dir", str(self._folder), "--unixsocket", str(self._socket))
        self._process = subprocess.Popen(["redis-server", *options.split(" "), *place])
        wait_for(self._socket.exists, 10)

    def stop(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait(10)
        self._socket.unlink(missing_ok=True)


@dataclass
class World:
    """What chaos may touch. Without a clock, a Redis or a disk the faults of these are left out."""

    server: RunningServer
    start: Callable[[], RunningServer]
    folder: Path
    model: str
    keys: dict[str, str]
    clock: Clock | None
    redis: Redis | None
    disk: Path | None
    former_log: str = ""

    def __post_init__(self) -> None:
        self.url = self.server.url  # of every server that is started here

    @property
    def log(self) -> str:
        return self.former_log + self.server.log

    def start_again(self) -> None:
        """Start a server in the place of one that has gone, as systemd does."""
        self.server.close()
        self.former_log += self.server.log
        self.server = self.start()
        self.server.wait_until_ready(300)

    def post(
        self, path: str, body: object, tenant: str = "a", **options: object
    ) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        options = {"timeout": 120, **options}
        return requests.post(self.url + path, json=body, headers=headers, **options)  # type: ignore[arg-type]

    def get(self, path: str, tenant: str = "a") -> requests.Response:
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        return requests.get(self.url + path, headers=headers, timeout=30)

    def set_disabled(self, tenant: str, *, is_disabled: bool) -> None:
        """Refuse a tenant's key from now on, or take it again; seen within a second."""
        with key_file.edited(self.folder / "keys.json") as keys:
            for at, key in enumerate(keys):
                if key.tenant == tenant:
                    keys[at] = msgspec.structs.replace(key, disabled=is_disabled)


@contextmanager
def world(folder: Path, model: str, conversations: str) -> Iterator[World]:
    """Run the service with two engines and two HTTP processes."""
    keys = {}
    with key_file.edited(folder / "keys.json") as held:
        for tenant in ("a", "b"):
            fresh = new_key()
            held.append(Key(fresh.id, fresh.sha256, tenant=tenant))
            keys[tenant] = fresh.text
    clock = Clock(folder) if HAS_COMPILER else None
    redis = Redis(folder) if conversations == "redis" else None
    disk = _small_disk(folder / "state")
    flags = [
        *(
            "--port",
            str(free_port()),
            "--profile",
            "all",
            "--api-server-count",
            "2",
            "--data-parallel-size",
            "2",
        ),
        *("--auth-mode", "keys", "--auth-keys", str(folder / "keys.json")),
        *("--state-dir", str(folder / "state"), "--step-timeout", "5", "--log-format", "json"),
        *("--conversations", redis.url if redis else "sqlite", "--drain-timeout", "60"),
        *("--default-max-tokens", "24"),
        *_model_flags(folder, model),
    ]
    environ = clock.environ if clock else None
    start = partial(RunningServer, folder / "run", *flags, environ=environ)
    server = start()
    try:
        server.wait_until_ready(300)
        here = World(server, start, folder, model, keys, clock, redis, disk)
        yield here
        server = here.server
    finally:
        server.close()
        if redis:
            redis.stop()
        if disk:
            subprocess.run(["umount", "--lazy", str(disk)], check=False)


def free_port() -> int:
    """Return a port that nobody has and no connection is given, so that it stays free."""
    while not is_free(port := random.randrange(20_000, 32_000)):
        pass
    return port


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def kind_of(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    if "serving.server" in words:
        return "HTTP"
    return "engine" if "spawn_main" in words else "other"


def _model_flags(folder: Path, model: str) -> list[str]:
    if model == "stub":
        return ["--stub", "--stub-step-seconds", "0.004"]
    real = ["--deterministic", "--threads", "1", "--kv-cache-gb", "0.5", "--dtype", "float32"]
    if model == "demo":
        return real
    from tests.engine.conftest import write_model

    write_model(folder / "hybrid", "qwen3_5", vocab_size=4096)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, folder / "hybrid")
    return [*real, "--model", str(folder / "hybrid"), "--served-model-name", "qwen-demo"]


def _small_disk(path: Path) -> Path | None:
    """Mount a disk that can be filled, where we may."""
    path.mkdir()
    options = f"size={DISK_BYTES},mode=700"
    command = ["mount", "-t", "tmpfs", "-o", options, "chaos", str(path)]
    if os.geteuid() or shutil.which("mount") is None:
        return None
    done = subprocess.run(command, capture_output=True, check=False)
    return path if done.returncode == 0 else None


def error_of(answer: requests.Response) -> str:
    """Return the code of a refusal, whatever the dialect, or its status."""
    try:
        body = answer.json()
    except ValueError:
        return f"{answer.status_code}"
    error = body.get("error", body) if isinstance(body, dict) else body
    code = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
    return f"{answer.status_code} {code or json.dumps(error)[:60]}"
