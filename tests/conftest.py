"""Servers that tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import interpreter
from tests.running_server import RunningServer

# Read when Triton is imported, which transformers does. With it, kernels run on a CPU.
if os.environ.get("QWENAPI_TEST_DEVICE", "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    interpreter.mend()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write what clients were seen to do")


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Start servers of a test's own; each must stop cleanly."""
    servers: list[RunningServer] = []

    def start(*flags: str, ready: bool = True, **options: object) -> RunningServer:
        server = RunningServer(tmp_path / f"run{len(servers)}", *flags, **options)  # type: ignore[arg-type]
        servers.append(server)
        return server.wait_until_ready() if ready else server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()
        server.close()


@pytest.fixture(scope="session")
def stub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Return a server on the stub engine, 5 ms a step, shared by tests that leave it as they found
    it.
    """
    server = RunningServer(
        tmp_path_factory.mktemp("stub"), "--stub", "--stub-step-seconds", "0.005"
    )
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()
