"""Real clients, unmodified, send a picture to a real engine whose model sees."""

import json

import pytest

from tests.clients.clients import Client, Outcome, output
from tests.images.pictures import data_url, file_of, noise
from tests.running_server import RunningServer
from tests.seeing_folder import write_folder

CLIENTS = {
    "openai": Client("openai", "openai_picture.py"),
    "langchain": Client("LangChain `ChatOpenAI`", "langchain_picture.py"),
    "anthropic": Client("anthropic", "anthropic_picture.py", "anthropic"),
}
# Of 8 pixels each way: 13 by 7 tokens.
PICTURE = noise(104, 56)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing")
    write_folder(folder)
    run_dir = tmp_path_factory.mktemp("pictures") / "run"
    flags = ("--model", str(folder), "--served-model-name", "seer", "--profile", "all")
    server = RunningServer(run_dir, *flags, "--device", "cpu", "--threads", "1")
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_sends_a_picture(server, tmp_path, pytestconfig, name):
    told = {"PICTURE": data_url(file_of(PICTURE)), "MODEL": "seer", "LEAST": str(13 * 7)}
    said = output(CLIENTS[name], server.url, tmp_path, pytestconfig.cache, **told)
    outcome = Outcome(**json.loads(said))
    assert len(outcome.proofs) == 2 and not outcome.failures, outcome.failures
