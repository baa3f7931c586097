"""Real clients, unmodified, against the real server: question, tool call, its result, answer.

The demo model answers, but for Qwen Code and Codex, whose prompts are longer than it can read.
"""

import pytest
from tokenizers import Tokenizer

from qwenapi.settings.table import etc_dir
from tests.clients import record
from tests.clients.clients import CLIENTS, run
from tests.docs.pages import Page
from tests.echoing_engine import echoing_server
from tests.running_server import RunningServer

DEMO = etc_dir() / "models" / "demo"
# Through the openai library, as others here.
LIKE_OPENAI = ("instructor", "litellm")
MODEL_CLIENTS = [
    pytest.param(name, marks=pytest.mark.slow if name in LIKE_OPENAI else ())
    for name in CLIENTS
    if name not in ("qwen-code", "codex")
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Return a server on the demo model; threads that wait leave the cores to the clients."""
    folder = tmp_path_factory.mktemp("clients")
    environ = {"OMP_WAIT_POLICY": "PASSIVE"}
    yield from serve(RunningServer(folder / "run", "--profile", "all", environ=environ))


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """Return a server on the stub engine that reads as much as an agent sends."""
    folder = tmp_path_factory.mktemp("stub")
    yield from serve(RunningServer(folder / "run", "--stub", "--max-model-len", "65536"))


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """Return a server whose engine says again what was said to it last."""
    with echoing_server(tmp_path_factory.mktemp("echo")) as server:
        yield server


def serve(server):
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def check(name, outcome, config):
    assert not outcome.failures, outcome.failures
    if config.getoption("--record"):
        record.write(name, outcome.record)
    seen = record.read().get(name)
    assert seen == outcome.record, "`pytest tests/clients --record` writes what was seen"


@pytest.mark.parametrize("name", MODEL_CLIENTS)
def test_a_client_does_what_the_pages_say(demo, tmp_path, pytestconfig, name):
    check(name, run(name, demo.url, tmp_path, pytestconfig.cache), pytestconfig)


def test_qwen_code_calls_its_tool_and_ends_with_the_answer(stub, tmp_path, pytestconfig):
    note = tmp_path / "note.txt"
    call = f'{{"name": "read_file", "arguments": {{"file_path": "{note}"}}}}'
    call = f"<tool_call>\n{call}\n</tool_call>"
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    num_tokens = len(tokenizer.encode(f"{call}\n<|im_start|>assistant\n").ids)
    told = {
        "CALL": call,
        "NOTE_FILE": str(note),
        "SEED": str(-num_tokens),
        "STOP_TOKEN": str(tokenizer.token_to_id("<|im_start|>")),
    }
    outcome = run("qwen-code", stub.url, tmp_path, pytestconfig.cache, **told)
    check("qwen-code", outcome, pytestconfig)


def test_codex_calls_its_tool_and_ends_with_the_answer(echo, tmp_path, pytestconfig):
    (config,) = Page("docs/clients.md").blocks("toml")
    told = {"CONFIG": config.replace("http://127.0.0.1:8000", echo.url)}
    outcome = run("codex", echo.url, tmp_path, pytestconfig.cache, **told)
    check("codex", outcome, pytestconfig)
