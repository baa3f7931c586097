"""An engine of a cluster as its supervisor sees it, on a launcher of this test's."""

import errno
import time
from dataclasses import replace
from unittest.mock import Mock

import msgspec
import pytest

from qwenapi import cli
from qwenapi.cluster import cluster_engine, engine_host, launcher
from qwenapi.cluster.cluster_engine import LOST, ClusterEngine
from qwenapi.cluster.engine_host import with_device
from qwenapi.cluster.job import restored
from qwenapi.settings.table import Settings
from tests.running_server import RunningServer, wait_for
from tests.wire.tcp_engine import TcpEngine
from workers.errors import ConfigError, ExitCode
from workers.wire.endpoint import Endpoint, endpoint_path
from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.shared_memory import SharedMemory


class Launcher:
    """Keeps what is asked of it, and says what the test has put into `said`."""

    def __init__(self):
        self.exit_code = self.failure = None
        self.asked, self.said, self.num_lives, self.num_starts = [], [], 0, 1

    def start(self, engine, job):
        self.num_lives += 1
        self.asked.append(("start", engine))
        self.job = job
        return self.num_lives

    def signal(self, engine, name):
        self.asked.append((name, engine))

    def events(self, engine):
        said, self.said = self.said, []
        return said

    def look(self, **facts):
        usual = {"exit": None, "failure": None, "pid": 77, "hang": None, "progress": ["", 0.0]}
        self.said.append(
            {"event": "look", "life": self.num_lives, "endpoint": None, **usual, **facts}
        )


class House:
    def __init__(self, folder):
        self.launcher = Launcher()
        self.memory = SharedMemory.create(folder / "page.shm", ENGINE_LAYOUT, 4)
        settings = Settings(model="/m", cluster="auto", data_parallel_size=4, api_key="k")
        self.child = ClusterEngine(3, settings, folder, self.memory, self.launcher)
        self.path = endpoint_path(folder, 3)
        self.child.start()

    def ready(self, engine):
        self.launcher.look(endpoint=msgspec.to_builtins(engine.endpoint))
        assert self.child.poll() is None
        wait_for(lambda: self.child.poll() is None and self.child.is_ready())


@pytest.fixture
def house(tmp_path):
    (tmp_path / "run").mkdir()
    return House(tmp_path / "run")


@pytest.fixture
def engine(tmp_path):
    engine = TcpEngine(tmp_path)
    yield engine
    if engine.thread.is_alive():
        engine.stop()


def test_an_engine_gets_its_settings_alone_and_no_key(house):
    assert restored(house.launcher.job) == Settings(model="/m", cluster="auto")
    assert len(bytes.fromhex(house.launcher.job["secret"])) == 32
    with pytest.raises(ConfigError, match="install the same version on every machine"):
        restored(house.launcher.job | {"version": "0"})


def test_it_is_ready_when_its_figures_have_come(house, engine):
    assert house.child.poll() is None and not house.child.is_ready() and house.child.pid is None
    house.ready(engine)
    assert house.child.pid == 77 and house.path.exists()
    assert house.memory.is_leased(3) and house.memory.read(3)["total_blocks"] == 77
    assert house.child.hang() is None and not house.child.has_served()


def test_one_whose_address_cannot_be_written_is_given_up(house, engine, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Endpoint, "write", Mock(side_effect=full))
    house.launcher.look(endpoint=msgspec.to_builtins(engine.endpoint))
    assert house.child.poll() == LOST and "No space left" in house.child.failure
    assert house.launcher.asked[-1] == ("kill", 3)


def test_its_counters_go_on_where_the_last_life_was_lost(house, engine):
    house.ready(engine)
    house.launcher.look(exit=1, failure="it broke")
    assert house.child.poll() == 1 and house.child.failure == "it broke"
    assert not house.path.exists() and not house.memory.is_leased(3)
    house.child.start()
    assert house.launcher.job["slot"] == house.memory.values(3)
    assert house.child.poll() is None and house.child.failure is None


def test_what_an_earlier_life_says_is_not_heard(house):
    house.launcher.look(exit=1)
    house.child.start()
    assert house.child.poll() is None


@pytest.mark.parametrize(
    ("event", "words"), [({"event": "gone", "why": "its node is lost"}, "its node is lost")]
)
def test_a_lost_node_is_the_end_of_its_engine(house, event, words):
    house.launcher.said.append({"life": 1} | event)
    assert house.child.poll() == LOST and words in house.child.failure


def test_an_engine_whose_port_is_closed_has_ended_though_nobody_says_so(house, engine, monkeypatch):
    monkeypatch.setattr(cluster_engine, "LAST_WORDS_SECONDS", 0.2)
    house.ready(engine)
    engine.stop()
    assert wait_for(house.child.poll, 10) == LOST and "port is closed" in house.child.failure
    assert house.launcher.asked[-1] == ("kill", 3)


def test_an_engine_out_of_reach_hangs(house, engine, monkeypatch):
    monkeypatch.setattr(cluster_engine, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(engine.worker, "_slot", None)
    house.ready(engine)
    monkeypatch.setattr(engine.worker._listener, "_send_slot", lambda: None)
    age = house.memory.read(3)["step_timeout_ns"] / 1e9
    monkeypatch.setattr(time, "monotonic_ns", lambda now=time.monotonic_ns: now() + int(age * 1e9))
    assert "no sign of life from node-1" in wait_for(house.child.hang, 10)


def test_a_host_that_finds_it_hanging_is_believed(house):
    house.launcher.look(hang="in step 7")
    house.child.poll()
    assert house.child.hang() == "in step 7"
    house.child.dump()
    house.child.kill()
    assert house.launcher.asked[-2:] == [("dump", 3), ("kill", 3)]
    assert house.child.poll() == LOST, "whether or not it can be reached"


def test_the_launchers_end_is_that_of_its_engines(house):
    house.launcher.exit_code, house.launcher.failure = ExitCode.CONFIG, "no Ray cluster"
    assert house.child.poll() == ExitCode.CONFIG and house.child.failure == "no Ray cluster"


def test_a_life_ends_with_its_launcher_though_another_has_been_started(house):
    house.launcher.num_starts += 1
    assert house.child.poll() == LOST and "launcher's process has ended" in house.child.failure


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'qwenapi\[ray\]'"):
        launcher.ClusterLauncher(Settings(cluster="auto"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--wire-tls-cert", "c.pem"), "TLS between machines needs three files"),
        (("--cluster", "auto", "--model-run-dir", "/r"), "both say where engines are"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, flags, words):
    server = RunningServer(tmp_path / "run", *flags, command="http")
    assert server.process.wait(30) == ExitCode.CONFIG
    server.close()
    assert words in server.log and "Traceback" not in server.log


@pytest.mark.parametrize("command", ["model", "http"])
def test_a_cluster_that_is_not_there_ends_the_start_with_its_address(tmp_path, command):
    server = RunningServer(tmp_path / "run", "--cluster", "127.0.0.1:1", command=command)
    assert server.process.wait(60) == ExitCode.CONFIG, server.log
    server.close()
    assert "no Ray cluster at 127.0.0.1:1" in server.log and "Traceback" not in server.log


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 0, "cuda")],
)
def test_auto_is_what_the_engine_has_of_its_node(monkeypatch, device, num_gpus, expected):
    monkeypatch.setattr(engine_host, "visible_gpus", lambda: ["one", "two"])
    settings = Settings(model="/m", device=device)
    assert with_device(settings, num_gpus, "a").device == expected


def test_a_gpu_that_the_nodes_driver_does_not_show_is_refused(monkeypatch):
    monkeypatch.setattr(engine_host, "visible_gpus", list)
    with pytest.raises(ConfigError, match="1 GPU of node a, whose driver shows none: mend it, let"):
        with_device(Settings(model="/m"), 1, "a")
    assert with_device(Settings(stub=True), 1, "a").device == "auto"


@pytest.mark.parametrize("name", ["standby", "standby_weights"])
def test_a_standby_is_of_no_use_to_a_cluster_and_refused(name):
    settings = replace(Settings(), cluster="auto", **{name: True})
    with pytest.raises(ConfigError, match="leave it out"):
        cli._model_half(None, settings, None)


def test_ranks_on_several_nodes_want_a_cluster():
    settings = replace(Settings(), allow_cross_node_tp=True, tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="set --cluster as well"):
        cli._model_half(None, settings, None)
