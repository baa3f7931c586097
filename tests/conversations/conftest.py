"""Both storages: a test that asks for `url` or a store runs on SQLite and on a real Redis."""

import importlib.util
import shutil
import subprocess
import time
from itertools import chain

import pytest

from qwenapi.conversations import StoreLimits, open_store
from tests.running_server import wait_for


def turns_of(store, conversation_id, tenant=""):
    """Return all turns of a conversation, oldest first."""
    conversation = store.find(tenant, conversation_id)
    return tuple(chain.from_iterable(store.pages(tenant, conversation)))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is missing (sudo apt-get install redis-server)")
    if importlib.util.find_spec("redis") is None:
        pytest.skip("the redis package is missing (pip install qwenapi[redis])")
    import redis

    folder = tmp_path_factory.mktemp("redis")
    address = folder / "redis.sock"
    options = "--port 0 --save  --appendonly yes --logfile redis.log".split(" ")
    server = subprocess.Popen(
        ["redis-server", *options, "--dir", str(folder), "--unixsocket", str(address)],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(unix_socket_path=str(address))

    def is_up():
        try:
            return client.ping()
        except redis.ConnectionError:
            return False

    try:
        wait_for(is_up, 10, (folder / "redis.log").read_text)
        yield f"unix://{address}"
    finally:
        client.close()
        server.kill()
        server.wait()


@pytest.fixture(params=["sqlite", "redis"])
def url(request):
    if request.param == "sqlite":
        yield "sqlite"
        return
    address = request.getfixturevalue("redis_url")
    import redis

    with redis.Redis.from_url(address) as client:
        client.flushall()
    yield address


@pytest.fixture
def make_store(url, tmp_path):
    """Open stores on one storage, as several processes would."""
    stores = []

    def make(**limits):
        store = open_store(url, tmp_path, limits=StoreLimits(**limits))
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def begin():
    """Begin a turn of a store, waiting at most `seconds`."""

    def begin(store, conversation_id=None, user="question", *, tenant="", seconds=10.0, **rest):
        deadline = time.monotonic() + seconds
        return store.begin_turn(
            tenant, conversation_id, user, owner="test", deadline=deadline, **rest
        )

    return begin


@pytest.fixture
def say(begin):
    """Commit one turn and return the id of its conversation."""

    def say(store, conversation_id=None, user="question", assistant="answer", **rest):
        with begin(store, conversation_id, user, **rest) as turn:
            turn.commit(assistant, "stop")
        return turn.conversation_id

    return say
