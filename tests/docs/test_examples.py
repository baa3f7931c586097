"""The examples of the pages run as they are printed there, against a server on the stub engine.

The Chinese pages have the same code, comments aside, which test_pages.py sees to.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import npm, seeing_folder
from tests.docs.pages import ROOT, Page, english
from tests.images.pictures import file_of, noise
from tests.pooling_folders import write_folder
from tests.running_server import RunningServer

PRINTED_URL = "http://127.0.0.1:8000"
# What can be run beside any server and leaves nothing behind; keys have a test of their own.
RUNNABLE = re.compile(r"curl |bin/qwenapi (ask|check|bench --url)\b|bin/check-service --url")
# Models that are asked for in the examples, and what they are for.
POOLING = {"Qwen3-Embedding-0.6B": "embed", "Qwen3-Reranker-0.6B": "rerank"}
SEEING = "Qwen3-VL-4B-Instruct"
COMMANDS = [
    pytest.param(command, id=f"{page.name}-{number}")
    for page in english()
    for number, command in enumerate(page.commands())
    if RUNNABLE.match(command) and "$KEY" not in command
]
PYTHON = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in english()
    for number, code in enumerate(page.blocks("python"))
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return a server of all documents whose steps take no time, for answers of full length."""
    flags = ("--stub", "--stub-step-seconds", "0", "--profile", "all")
    server = RunningServer(tmp_path_factory.mktemp("examples") / "run", *flags)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture(scope="module")
def server_for(server, tmp_path_factory):
    """Return the server that a command is for: some want a model of another task."""
    made = {}

    def server_for(command):
        name = next((name for name in (*POOLING, SEEING) if name in command), None)
        if name is None:
            return server
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name == SEEING:
                (folder / "model").mkdir()
                seeing_folder.write_folder(folder / "model")
            else:
                write_folder(folder / "model", POOLING[name])
            flags = ("--stub", "--model", str(folder / "model"), "--served-model-name", name)
            made[name] = RunningServer(folder / "run", *flags).wait_until_ready()
        return made[name]

    yield server_for
    for server in made.values():
        assert server.stop() == 0


def run(command: str, folder: Path, url: str = PRINTED_URL, **environ: str) -> str:
    """Run a command of a shell as it is printed, but for the program and the address."""
    command = command.replace("bin/qwenapi", f"'{sys.executable}' -m qwenapi")
    command = command.replace("bin/check-service", f"'{ROOT}/bin/check-service'")
    command = re.sub("^curl", "curl --fail-with-body --silent --show-error", command)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace(PRINTED_URL, url)],
        cwd=folder,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_answered(server_for, tmp_path, command):
    assert run(command, tmp_path, server_for(command).url)


@pytest.mark.parametrize("code", PYTHON)
def test_a_python_example_prints_an_answer(server_for, tmp_path, code):
    (tmp_path / "chart.png").write_bytes(file_of(noise(60, 40)))
    text = code.replace(PRINTED_URL, server_for(code).url)
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert "你好" in done.stdout


def test_the_python_example_of_the_documents_prints_every_answer(server):
    (code,) = Page("docs/documents.md").blocks("python")
    text = code.replace(PRINTED_URL, server.url)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=90)
    assert "冒泡排序" in done.stdout and "你好" in done.stdout and "机器学习" in done.stdout


def test_the_axios_example_prints_the_answer(server, pytestconfig):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    source = ROOT / "tests/documents/npm"
    modules = npm.installed(source, pytestconfig.cache.mkdir("documents-npm")) / "node_modules"
    (code,) = Page("docs/documents.md").blocks("javascript")
    text = code.replace(PRINTED_URL, server.url)
    command = ["node", "--input-type=commonjs", "-e", text]
    environ = {"NODE_PATH": str(modules), "PATH": str(Path(shutil.which("node")).parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    assert "央行" in done.stdout


def test_keys_are_made_listed_used_and_disabled_as_the_page_says(start_server, tmp_path):
    add, list_, serve, curl, disable = Page("docs/keys.md").commands_of_first_block()
    key = run(f"{add}; echo $KEY", tmp_path).strip()
    listed = run(list_, tmp_path)
    assert "acme" in listed and key not in listed
    flags = serve.split(" serve ")[1].replace("keys.json", str(tmp_path / "keys.json"))
    server = start_server("--stub", *flags.split())
    assert "qwen-demo" in run(curl, tmp_path, server.url, KEY=key)
    number = re.search(r"^\s*(\w+)", listed.splitlines()[1])[1]
    run(disable.replace("ID", number), tmp_path)
    assert "disabled" in run(list_, tmp_path)


def test_a_file_of_requests_is_answered_line_by_line(server, tmp_path):
    (lines,) = Page("docs/clients.md").blocks("json")
    (tmp_path / "in.jsonl").write_text(lines, encoding="utf-8")
    (command,) = (c for c in Page("docs/clients.md").commands() if "qwenapi batch -i" in c)
    run(command, tmp_path, server.url)
    answers = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert sorted(re.findall(r'"custom_id": "(\w+)".*"status_code": 200', answers)) == ["1", "2"]
