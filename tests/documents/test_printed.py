"""The clients as the documents print them, run against a real server on the stub engine."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.documents.printed import only, snippets
from tests.running_server import RunningServer, sse_events


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--stub", "--profile", "all", "--max-model-len", "8192")
    server = RunningServer(tmp_path_factory.mktemp("printed") / "run", *flags)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def python(text):
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


def node(text):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    command = ["node", "--input-type=module", "-e", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_000_the_single_call_prints_the_code(server):
    printed = python(only("000", "def call_single_generation").pointed_at(server.url))
    assert "✅ 请求成功" in printed and "❌" not in printed


def test_000_the_session_gets_an_id_and_a_second_turn(server):
    printed = python(only("000", "def call_streaming_chat_session").pointed_at(server.url))
    assert re.search(r"已建立会话, ID: [0-9a-f-]{36}\]", printed)
    assert "[第二轮]" in printed and "❌" not in printed
    # the stub repeats what it was asked: the second answer holds the first question
    assert printed.split("[第二轮]")[1].count("冒泡排序") >= 1


def test_001_the_client_prints_a_text(server):
    assert python(only("001", "def generate_text_from_qwen").pointed_at(server.url)).strip()


@pytest.mark.parametrize(
    "holding",
    ["def chat_with_qwen(message, history", "def chat_completion(messages)", "def stream_chat"],
)
def test_002_the_python_clients_print_an_answer(server, holding):
    printed = python(only("002", holding).pointed_at(server.url))
    assert printed.strip() and "错误" not in printed


def test_002_the_robust_client_answers(server):
    text = only("002", "def robust_chat").pointed_at(server.url)
    call = re.search(r"def robust_chat\(([^)]*)\)", text)[1]
    messages = '[{"role": "user", "content": "你好"}]' if call.startswith("messages") else '"你好"'
    printed = python(f"{text}\nprint('answer:', robust_chat({messages}))")
    assert "answer:" in printed and "失败" not in printed and "错误" not in printed


def test_002_the_load_test_counts_answers(server):
    text = only("002", "def performance_test").pointed_at(server.url)
    printed = python(text.replace("\nperformance_test()", "\nperformance_test(3)"))
    assert int(re.search(r"总请求数: (\d+)", printed)[1]) > 20


def test_002_the_fetch_client_prints_an_answer(server):
    text = only("002", "async function chatWithQwen").pointed_at(server.url)
    assert node(text).strip()


@pytest.mark.parametrize("number", ["002", "003", "004"])
def test_every_printed_curl_of_a_completion_is_answered(server, number):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = [
        command
        for snippet in snippets(number)
        for command in re.findall(
            r"^curl.*?(?:'$|\}'\s*$)", snippet.pointed_at(server.url), re.M | re.S
        )
        if "/completions" in command
    ]
    assert len(commands) >= 2
    for command in commands:
        done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
        if '"stream": true' in command:
            assert sse_events(done.stdout)[-1] == "[DONE]"
        else:
            assert json.loads(done.stdout)["choices"], done.stdout


def test_003_the_decoder_yields_every_character(server):
    source = only("003", "class StreamDecoder").pointed_at(server.url)
    source = source.replace("const API_BASE = '/api'", f"const API_BASE = '{server.url}/api'")
    prompt = "阶乘函数 🙂 recursive " * 5
    ask = {
        "model": "MyCoder",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0.1,
    }
    script = f"""{source}
let text = '';
for await (const piece of streamDecoder.streamGenerate({json.dumps(prompt)})) text += piece;
console.log(JSON.stringify(text));
"""
    decoded = json.loads(node(script).splitlines()[-1])  # the decoder itself prints what it skips
    assert len(decoded) > 1000
    # the stub starts at a seed of its own, so the text is the same ring of characters
    body = server.post("/v1/chat/completions", ask | {"max_tokens": 2048}).json()
    whole = body["choices"][0]["message"]["content"]
    assert body["usage"]["completion_tokens"] == 2048
    assert decoded[:200] in whole + whole and "\N{REPLACEMENT CHARACTER}" not in decoded[5:-5]


def test_004_the_client_classifies_and_finds_the_service_healthy(server):
    text = only("004", "def classify_news").pointed_at(server.url)
    calls = text[: text.index("# 使用示例")]  # its metrics come with the ledger
    printed = python(
        f"{calls}\nprint(classify_news('央行宣布降息25个基点'))\nprint(health_check())"
    )
    assert printed.strip().endswith("True") and len(printed) > 10
