"""A model half with three HTTP halves behind one nginx, as the unit files put them."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ops.nginx import RunningNginx, nginx_program
from tests.running_server import RunningServer

STEP = ("--stub", "--stub-step-seconds", "0.002", "--max-model-len", "8192")
SHORT = ("--default-max-tokens", "300")


@dataclass(frozen=True)
class Site:
    """`model` also serves the profile `all`, so that one process tree fewer has to start."""

    model: RunningServer
    halves: dict[str, Path]
    nginx: RunningNginx


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """Return a folder whose path leaves room for the name of a socket."""
    folder = Path(tempfile.mkdtemp(prefix="qw"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def start_nginx(short_dir: Path) -> Iterator[Callable[..., RunningNginx]]:
    with ExitStack() as stack:

        def start(halves: dict[str, Path], **values: str) -> RunningNginx:
            nginx = RunningNginx(
                short_dir / f"nginx{len(list(short_dir.iterdir()))}", halves, values
            )
            stack.callback(nginx.stop)
            return nginx

        yield start


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    nginx_program()
    folder = Path(tempfile.mkdtemp(prefix="qw"))
    halves = {name: folder / f"{name}.sock" for name in ("all", "coder", "qwen2")}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        model = _start(stack, folder / "all", "all", halves, *STEP, *SHORT)
        shared = ("--model-run-dir", str(model.run_dir))
        for name in ("coder", "qwen2"):
            _start(stack, folder / name, name, halves, *shared, *SHORT, command="http")
        nginx = RunningNginx(folder / "nginx", halves)
        stack.callback(nginx.stop)
        yield Site(model, halves, nginx)


def _start(
    stack: ExitStack,
    run_dir: Path,
    profile: str,
    halves: dict[str, Path],
    *flags: str,
    command: str = "serve",
) -> RunningServer:
    flags = ("--profile", profile, "--uds", str(halves[profile]), *flags)
    server = RunningServer(run_dir, *flags, command=command)
    stack.callback(server.close)
    server.wait_until_ready()
    stack.callback(server.stop)
    return server
