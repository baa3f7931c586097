"""The server that all of fuzzing shares, on the stub, which is checked when it is over."""

import pytest

from tests.running_server import RunningServer


@pytest.fixture(scope="session")
def fuzzed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    flags = ("--stub", "--profile", "all", "--max-model-len", "400", "--socket-timeout", "2")
    server = RunningServer(folder / "run", *flags, "--connections-per-address", "4000")
    try:
        server.wait_until_ready()
        pids = {process.pid for process in server.tree()}
        yield server
        server.wait_until_idle()
        assert {process.pid for process in server.tree()} == pids, "a process was replaced"
        assert server.row()["starts"] == 1
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log[-6000:]
    finally:
        server.close()
