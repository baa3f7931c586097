"""How engines are found and held, on a connection of this test's."""

from pathlib import Path

import pytest

from qwenapi.engines import client as module
from qwenapi.engines.client import EngineClient
from qwenapi.engines.link import EngineLink
from tests.wire.test_protocol import CARD
from workers.errors import ConfigError, SharedMemoryError
from workers.wire.connection import ConnectionEnded
from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.protocol import Hello
from workers.wire.shared_memory import SharedMemory

PATH = Path("engine-0.sock")


class Wire:
    is_closed = False

    def receive(self):
        raise ConnectionEnded

    def close(self):
        self.is_closed = True


@pytest.fixture
def wire(monkeypatch):
    wire = Wire()
    monkeypatch.setattr(module, "connect", lambda path, name, tls: (wire, Hello(1, 1, 0, "", CARD)))
    monkeypatch.setattr(module.gevent, "sleep", lambda seconds: None)
    return wire


@pytest.fixture
def client(tmp_path):
    client = EngineClient(tmp_path, "test", lambda card: None)
    client._connecting.add(PATH)
    return client


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), PermissionError(13, "Permission denied")]
)
@pytest.mark.parametrize("place", ["EngineLink", "in_thread"])
def test_an_engine_that_could_not_be_held_is_tried_again(client, wire, monkeypatch, error, place):
    def fail(*args):
        raise error

    monkeypatch.setattr(module, place, fail)
    client._serve(PATH)
    assert wire.is_closed and PATH not in client._connecting and not client._links


@pytest.mark.parametrize("error", [MemoryError(), SharedMemoryError("torn")])
def test_whatever_else_goes_wrong_leaves_nothing_behind(client, wire, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(module, "EngineLink", fail)
    with pytest.raises(type(error)):
        client._serve(PATH)
    assert wire.is_closed and PATH not in client._connecting


def test_an_engine_whose_model_cannot_be_used_is_let_go(tmp_path, wire):
    def refuse(card):
        raise ConfigError("no tokenizer")

    client = EngineClient(tmp_path, "test", refuse)
    client._connecting.add(PATH)
    client._serve(PATH)
    assert wire.is_closed and not client._links and PATH not in client._connecting


def test_a_connection_that_ends_leaves_its_place_to_the_next(client, wire):
    client._serve(PATH)
    assert wire.is_closed and not client._links and PATH not in client._connecting


def test_engines_are_measured_once_a_second_by_what_they_publish(client, tmp_path, monkeypatch):
    memory = SharedMemory.create(tmp_path / "engines.shm", ENGINE_LAYOUT, 2)
    rows = [memory.lease(i) for i in range(2)]
    for i, row in enumerate(rows):
        hello = Hello(1, 1, i, str(memory.path), CARD)
        link = EngineLink(Wire(), hello, client._replays)
        link.num_tokens_in_flight = 6000
        client._links[Path(f"engine-{i}.sock")] = link
        row.update(running=2, waiting=1, total_blocks=100)
    seconds = []

    def a_second_passes(length):
        assert length == 1
        for i, row in enumerate(rows):
            row["generated_tokens"] += 300 // (i + 1)
        seconds.append(length)
        if len(seconds) > 5:
            raise StopIteration

    monkeypatch.setattr(module.gevent, "sleep", a_second_passes)
    monkeypatch.setattr(module.gevent, "spawn", lambda *args: None)
    with pytest.raises(StopIteration):
        client._keep_time()
    first, second = (link.capacity for link in client._links.values())
    assert first == (4000, 1)
    assert second == (4000, pytest.approx(2))
