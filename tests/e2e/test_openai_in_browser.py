"""OpenAI's own JavaScript library in a real browser, on a page of another origin."""

import functools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.browser.chromium import Page, browser_fixture  # noqa: F401
from tests.npm import installed
from tests.running_server import RunningServer

SOURCES = Path(__file__).parent / "openai_js"
KEY = "sk-of-the-page"
ASK = {
    "model": "Qwen3-32B",
    "messages": [{"role": "user", "content": "你好 browser"}],
    "max_tokens": 6,
    "seed": 1,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--stub", "--profile", "guide", "--api-key", KEY)
    server = RunningServer(tmp_path_factory.mktemp("browser") / "run", *flags)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def page(browser, pytestconfig):
    """Return the page, opened; that it asks another server is what is tested."""
    folder = installed(SOURCES, pytestconfig.cache.mkdir("openai_js"))
    shutil.copy(SOURCES / "page.html", folder / "index.html")
    handler = functools.partial(QuietFiles, directory=str(folder))
    files = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=files.serve_forever)
    thread.start()
    try:
        url = f"http://localhost:{files.server_port}/"
        browser.ask("open", url=url, ready="html[data-ready]")
        yield Page(browser)
        browser.ask("close")
    finally:
        files.shutdown()
        thread.join()
        files.server_close()


def run(page, server, call, key=KEY):
    """Return what a call of the library's `client` gives, or {error, status} of what it throws."""
    script = f"""(async () => {{
        const client = clientOf({json.dumps(server.url + "/v1")}, {json.dumps(key)});
        try {{ {call} }} catch (error) {{
          const {{ name }} = error.constructor;
          return {{ error: name, status: error.status ?? null, code: error.code }};
        }}
    }})()"""
    return page.evaluate(script)


def test_it_chats(page, server):
    answer = run(page, server, f"return await client.chat.completions.create({json.dumps(ASK)});")
    assert answer["choices"][0]["message"]["content"], answer
    assert answer["usage"]["completion_tokens"] == 6


def test_it_streams_the_same(page, server):
    whole = run(page, server, f"return await client.chat.completions.create({json.dumps(ASK)});")
    streamed = run(
        page,
        server,
        f"""const stream = await client.chat.completions.create(
              {json.dumps(ASK | {"stream": True})});
            let text = "";
            for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
            return text;""",
    )
    assert streamed == whole["choices"][0]["message"]["content"]


def test_it_finds_models(page, server):
    call = 'return await client.models.retrieve("Qwen3-32B");'
    assert run(page, server, call)["id"] == "Qwen3-32B"
    call = 'return await client.models.retrieve("no/such/model");'
    assert run(page, server, call)["code"] == "model_not_found"


def test_it_reads_the_headers_of_an_answer(page, server):
    body = json.dumps(ASK | {"store": True, "max_tokens": 10**9})
    shown = run(
        page,
        server,
        f"""const {{ response }} = await client.chat.completions.create({body}).withResponse();
            const names = ["x-ignored", "x-clamped", "x-request-id"];
            return names.map((name) => response.headers.get(name));""",
    )
    assert shown[0] == "store" and shown[1].startswith("max_tokens=") and len(shown[2]) == 32


def test_it_learns_that_its_key_is_wrong(page, server):
    call = f"return await client.chat.completions.create({json.dumps(ASK)});"
    refused = run(page, server, call, key="sk-wrong")
    assert (refused["error"], refused["status"]) == ("AuthenticationError", 401)
