"""An earlier state of this project beside this one: its wire, state, keys; an upgrade under load.

QWENAPI_TEST_UPGRADE_FROM names the earlier commit.
"""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.docs.pages import ROOT
from tests.e2e.test_keys import add, bearer
from tests.e2e.test_replay import chat
from tests.running_server import RunningServer, sse_events, wait_for

EARLIER = os.environ.get("QWENAPI_TEST_UPGRADE_FROM", "HEAD~40")
SLOW = ("--stub", "--stub-step-seconds", "0.01")
TURN = "/v1/code/chat_stream"

pytestmark = pytest.mark.slow


def unpack(commit: str, folder: Path) -> Path:
    """Write a commit's files into a folder."""
    folder.mkdir(exist_ok=True)
    found = subprocess.run(
        ["git", "-C", ROOT, "archive", commit], capture_output=True, timeout=60, check=False
    )
    if found.returncode:
        pytest.skip(f"no commit {commit} here: {found.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", folder], input=found.stdout, timeout=60, check=True)
    return folder


@pytest.fixture
def earlier(tmp_path):
    return unpack(EARLIER, tmp_path / "earlier")


@pytest.fixture
def start(tmp_path):
    """Start servers of either code, in folders that are told."""
    servers = []

    def start_in(code, run_dir, *flags, **options):
        prefix = ("env", "-C", str(code))  # which Python looks through first
        servers.append(RunningServer(tmp_path / run_dir, *flags, prefix=prefix, **options))
        return servers[-1].wait_until_ready()

    yield start_in
    for server in servers:
        if server.process.poll() is None:
            server.stop()
        server.close()


def code_of(server):
    """Return the folder whose code the processes of a server run."""
    return {process.cwd() for process in server.tree()}


@pytest.mark.parametrize("later", ["http", "model"])
def test_halves_of_both_understand_each_other(tmp_path, earlier, start, later):
    codes = {"http": earlier, "model": earlier, later: ROOT}
    model = start(codes["model"], "model", *SLOW, command="model")
    flags = ("--model-run-dir", str(model.run_dir))
    http = start(codes["http"], "http", *flags, command="http")
    assert code_of(model) == {str(codes["model"])} and code_of(http) == {str(codes["http"])}
    ask = chat(3, stream=True, n=2, logprobs=True, max_tokens=50)
    whole = ask(http)
    assert whole[-1] == "[DONE]" and ask(http) == whole


def test_conversations_and_keys_outlive_an_upgrade_and_a_way_back(tmp_path, earlier, start):
    """The earlier code may refuse a file of the later one; it must not harm it."""
    secret = add(tmp_path / "keys.json", "acme")
    flags = ("--stub", "--profile", "all", "--state-dir", str(tmp_path / "state"))
    flags += ("--auth-mode", "keys", "--auth-keys", str(tmp_path / "keys.json"))
    conversation, contents = None, []
    for number, code in enumerate((earlier, ROOT, earlier, ROOT)):
        server = start(code, f"run{number}", *flags, "--default-max-tokens", "9")
        body = {"prompt": f"turn {number}"}
        body |= {"conversation_id": conversation} if conversation else {}
        answer = requests.post(server.url + TURN, json=body, headers=bearer(secret), timeout=60)
        if number == 2 and answer.status_code == 503:
            assert server.stop() == 0
            continue
        assert answer.status_code == 200, answer.text
        if conversation is None:
            conversation = answer.text.partition("conversation_id:")[2].partition("\n")[0]
        address = f"{server.url}/v1/code/conversations/{conversation}"
        messages = requests.get(address, headers=bearer(secret), timeout=60).json()["messages"]
        kept = [message["content"] for message in messages]
        assert kept[: len(contents)] == contents and kept[-2] == f"turn {number}"
        contents = kept
        assert server.stop() == 0


def test_an_upgrade_under_load_fails_no_request_and_cuts_no_stream(earlier, start):
    """The HTTP half is reloaded, the model half restarted: its shared memory may be another."""
    model = start(earlier, "model", *SLOW, command="model")
    flags = ("--model-run-dir", str(model.run_dir), "--api-server-count", "2")
    server = start(earlier, "run", *flags, command="http")
    ask, is_over = chat(5, stream=True, max_tokens=60), threading.Event()
    whole = ask(server)

    def call():
        answers = []
        while not is_over.is_set():
            answer = server.post(ask.path, ask.body)
            answers.append((answer.status_code, sse_events(answer.content)[-1]))
        return answers

    with ThreadPoolExecutor(8) as pool:
        calling = [pool.submit(call) for _ in range(8)]
        old = {process.pid for process in server.http_workers()}
        for package in ("qwenapi", "workers", "etc"):
            shutil.rmtree(earlier / package)
            shutil.copytree(ROOT / package, earlier / package)
        command = [sys.executable, "-m", "qwenapi", "reload", "--run-dir", str(server.run_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr + server.log[-2000:]
        wait_for(lambda: not old & {process.pid for process in server.http_workers()}, 60)
        assert model.stop(60) == 0
        start(ROOT, "model", *SLOW, command="model")
        is_over.set()
        answers = [answer for one in calling for answer in one.result()]
    assert set(answers) == {(200, "[DONE]")} and len(answers) > 16
    assert ask(server) == whole
