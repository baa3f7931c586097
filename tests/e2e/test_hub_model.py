"""`qwenapi serve --model ORG/NAME`, whole: fetched from a hub on loopback, and it answers."""

import subprocess
import sys

import pytest

from qwenapi.settings.table import etc_dir
from tests.hub.hub_server import COMMIT, REPO, HubServer
from workers.errors import ExitCode

DEMO = etc_dir() / "models" / "demo"
FLAGS = ("--dtype", "float32", "--threads", "2", "--num-blocks", "64")


@pytest.fixture
def environ(tmp_path):
    return {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


def test_a_model_of_a_hub_is_fetched_and_answers_by_its_hub_name(start_server, environ):
    hub = HubServer(DEMO)
    flags = ("--model", REPO, *FLAGS)
    with hub.running() as endpoint:
        server = start_server(*flags, environ=environ | {"HF_ENDPOINT": endpoint})
    assert not any(name.endswith(".py") for name in hub.fetched)
    assert "org/tiny: fetching" in server.log and "org/tiny: fetched" in server.log
    assert server.get("/v1/models").json()["data"][0]["id"] == REPO
    answer = server.chat("你好", model=REPO, temperature=0, max_tokens=40).json()
    assert answer["model"] == REPO
    assert answer["choices"][0]["message"]["content"].endswith("有什么可以帮你？")
    server.stop()
    # The hub is gone, and what it gave is enough.
    again = start_server(*flags, environ=environ | {"HF_ENDPOINT": endpoint})
    assert f"the cached copy of commit {COMMIT[:12]} is served" in again.log
    assert again.text("你好", temperature=0, max_tokens=40).endswith("有什么可以帮你？")


@pytest.mark.slow
def test_a_model_half_of_a_hubs_name_is_reloaded_from_the_cache(start_server, environ):
    with HubServer(DEMO).running() as endpoint:
        here = environ | {"HF_ENDPOINT": endpoint}
        server = start_server("--model", REPO, *FLAGS, environ=here)
    before = server.row()["pid"]
    line = [sys.executable, "-m", "qwenapi", "reload", "model", "--run-dir", str(server.run_dir)]
    assert subprocess.run(line, timeout=120).returncode == 0, server.log
    assert server.row()["pid"] != before
    assert server.text("你好", temperature=0, max_tokens=40).endswith("有什么可以帮你？")


def test_a_model_that_is_not_there_starts_nothing(start_server, environ):
    with HubServer(DEMO).running() as endpoint:
        here = environ | {"HF_ENDPOINT": endpoint}
        server = start_server("--model", "org/none", ready=False, environ=here)
        assert server.process.wait(60) == ExitCode.CONFIG
    server.close()
    assert server.log.startswith("qwenapi: org/none: no such directory here, and no such model")
    assert not (server.run_dir / "engine-0.sock").exists()
