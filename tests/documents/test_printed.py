"""The clients as the documents print them, run against a real server on the stub engine."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import npm
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


def node(text, kind="module", modules=Path()):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    command = ["node", f"--input-type={kind}", "-e", text]
    environ = os.environ | {"NODE_PATH": str(modules / "node_modules")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
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


def test_002_the_axios_client_prints_an_answer(server, pytestconfig):
    text = only("002", "require('axios')").pointed_at(server.url)
    source = Path(__file__).with_name("npm")
    modules = npm.installed(source, pytestconfig.cache.mkdir("documents-npm"))
    assert "快速排序" in node(text, kind="commonjs", modules=modules)


def test_002_the_aiohttp_batch_of_64_is_answered_whole(server):
    text = only("002", "async def batch_chat").pointed_at(server.url)
    call = """
import json
batch = [[{"role": "user", "content": f"question number {i}"}] for i in range(1000, 1064)]
print(json.dumps(asyncio.run(batch_chat(batch))))
"""
    answers = json.loads(python(text + call))
    # the stub repeats what it was asked: no answer went to another's question
    assert len(answers) == 64
    assert [str(i) in answers[i - 1000] for i in range(1000, 1064)] == [True] * 64


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
    # the stub starts at a seed of its own, perhaps inside a character: the same ring of text
    body = server.post("/v1/chat/completions", ask | {"max_tokens": 2048}).json()
    whole = body["choices"][0]["message"]["content"]
    assert body["usage"]["completion_tokens"] == 2048
    assert decoded[5:200] in whole + whole and "\N{REPLACEMENT CHARACTER}" not in decoded[5:-5]


def test_004_the_client_classifies_reads_the_metrics_and_finds_the_service_healthy(server):
    text = only("004", "def classify_news").pointed_at(server.url)
    printed = python(f"{text}\nprint(health_check())").strip().splitlines()
    assert len(printed) > 3 and printed[-1] == "True"
    assert re.fullmatch(r"TTFT P95: \d+\.\d+s", printed[-3])
    assert float(re.fullmatch(r"吞吐量: (\d+\.\d+) tok/s", printed[-2])[1]) > 0


@pytest.mark.parametrize(
    "path", ["/health", "/api/v1/metrics", "/metrics/prometheus", "/metrics", "/stats"]
)
def test_004_every_report_answers_before_and_after_a_request(server, path):
    for _ in range(2):
        assert server.get(path).status_code == 200
        server.chat("hello", max_tokens=3)
