"""Document 003's page as it is printed, in a real browser, behind the proxy it prints.

Nothing of it is repaired: the modules run as they stand, and the printed configuration, the inside
of an object, is wrapped in braces. The document prints no HTML; its script asks for four ids.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import requests

from tests.documents.printed import only
from tests.e2e.browser.chromium import browser_fixture  # noqa: F401
from tests.e2e.test_http_on_stub import raw_request
from tests.running_server import RunningServer, wait_for

QUESTION = "写一个递归阶乘函数 🙂"
HTML = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<div id="chat"></div><textarea id="input"></textarea>
<button id="send-btn">send</button><button id="abort-btn">stop</button>
<script type="module" src="/src/main.js"></script>"""
IDLE = '#abort-btn[style*="none"]'
SHOWN = "document.querySelector('.message.bot:last-child .content').textContent"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--stub", "--stub-step-seconds", "0.005", "--profile", "browser")
    short = ("--max-model-len", "240", "--max-running", "1", "--max-waiting", "1")
    server = RunningServer(tmp_path_factory.mktemp("page") / "run", *flags, *short)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture(scope="module")
def site(server, tmp_path_factory, browser):
    """Return the address of the printed page; `browser` comes first, as it skips without node."""
    folder = tmp_path_factory.mktemp("site")
    write_printed_files(folder, server.url)
    command = ["node", str(Path(__file__).with_name("page_proxy.mjs")), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            yield f"http://127.0.0.1:{proxy.stdout.readline().strip()}"
        finally:
            proxy.terminate()


def write_printed_files(folder, url):
    config = only("003", "devServer:").pointed_at(url)
    files = {
        "index.html": HTML,
        "src/api/vllm.js": only("003", "class StreamDecoder").text,
        "src/main.js": only("003", "class RealtimeStreamUI").text,
        "src/styles/main.css": only("003", "@keyframes bounce").text,
        "webpack.config.mjs": f"export default {{\n{config}\n}};\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def page(browser, site):
    with browser.open(site + "/", ready=IDLE) as page:
        yield page


def whole_answers(server):
    """Return what the stub may answer to the page's question: it starts where a seed says."""
    messages = [{"role": "user", "content": QUESTION}]
    asked = {"model": "MyCoder", "messages": messages, "max_tokens": 2048, "n": 8}
    texts = []
    while not texts or texts[0] not in texts[1:]:
        body = server.post("/v1/chat/completions", asked | {"seed": len(texts)}).json()
        texts += [choice["message"]["content"] for choice in body["choices"]]
    return texts


def test_a_whole_answer_streams_and_is_shown_to_the_last_character(server, page):
    page.send(QUESTION)
    lengths = page.ask("watch")
    assert len(lengths) >= 5, f"it did not come piece by piece: {lengths}"
    shown = page.evaluate(SHOWN)
    assert QUESTION in shown and shown in whole_answers(server)
    assert page.text(".message.user .content") == QUESTION
    assert page.evaluate("getComputedStyle(document.querySelector('pre')).willChange") == "contents"
    assert page.count(IDLE) == 1, "the page does not know that the answer has ended"


def test_a_second_question_after_the_first_loses_nothing_either(server, page):
    for _ in range(2):
        page.send(QUESTION)
        page.ask("waitUntilIdle")
    assert page.count(".message.bot") == 2
    assert page.evaluate(SHOWN) in whole_answers(server)


def test_its_stop_button_frees_the_engine(server, page):
    page.send(QUESTION)
    wait_for(lambda: server.row()["running"] == 1)
    engine = server.row()["pid"]
    os.kill(engine, signal.SIGSTOP)  # so that the answer does not end before the click
    page.click("#abort-btn")
    os.kill(engine, signal.SIGCONT)
    wait_for(lambda: server.row()["running"] == 0, 5)
    page.ask("waitUntilIdle")
    assert page.evaluate(SHOWN).startswith("生成中断"), "its own words, over what had come"


def test_a_refusal_ends_the_answer_though_the_proxy_calls_it_a_stream(server, browser, site):
    asked = {"model": "MyCoder", "messages": [{"role": "user", "content": "hi"}]}
    direct = {"url": f"{site}/api/chat/completions", "json": {"model": 5}, "timeout": 10}
    assert requests.post(**direct).headers["Content-Type"] == "text/event-stream; charset=utf-8"
    with browser.open(site + "/", expected_complaint="503", ready=IDLE) as page:
        with raw_request(server, asked), raw_request(server, asked):
            wait_for(lambda: server.row()["running"] == server.row()["waiting"] == 1)
            page.send(QUESTION)
            page.ask("waitUntilIdle")
            assert page.evaluate(SHOWN) == ""
        server.wait_until_idle()
        page.send(QUESTION)
        page.ask("waitUntilIdle")
        assert QUESTION in page.evaluate(SHOWN)
