"""The chat page in a real browser, against a real server on the stub engine.

The stub answers with the prompt's own tokens, over and over, from a place of its choosing: what the
reader wrote comes back in the answer, and goes on until it is stopped or the model's length is
reached.
"""

import json
import re

import pytest
import requests
from flask import Request
from werkzeug.test import EnvironBuilder

from qwenapi.web import wants_page
from qwenapi.web.static.vendor import fetch
from tests.e2e.browser.chromium import browser_fixture  # noqa: F401
from tests.e2e.test_http_on_stub import MESSAGES, raw_request
from tests.running_server import RunningServer, wait_for

CHINESE = "你好，世界！今天天气怎么样？"
IMAGE = '<img src=x onerror="window.pwned=1">'
ATTACKS = f"""{IMAGE}

<script>window.pwned=1</script> <svg onload=window.pwned=1> <iframe srcdoc="<b>x</b>"></iframe>

<div style="position:fixed" onclick="window.pwned=1">

[a](javascript:window.pwned=1) [b](data:text/html,x) [c](https://example.com/"onclick=1)
![track](https://example.com/pixel.png) <a href="/v1/models" id="chat" name="input">d</a>

```html"><script>window.pwned=1</script>
{IMAGE}
```
"""
MARKDOWN = """# 标题

- 一
- **二**

| a | b |
|--:|---|
| 1 | 2 |

```python
def f(x):
    return 1
```

[x][y]

[y]: https://example.com/
"""


def events(*deltas, ending="data: [DONE]\n\n"):
    """Return a stream of the deltas as a server would write it."""
    frames = [{"choices": [{"index": 0, "delta": {"content": d}}]} for d in deltas]
    return "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames) + ending


@pytest.fixture(scope="module")
def short_server(tmp_path_factory):
    """Return a server whose answers end soon."""
    flags = ("--stub", "--stub-step-seconds", "0.01", "--max-model-len", "160")
    server = RunningServer(tmp_path_factory.mktemp("short"), *flags)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture
def page(browser, stub_server):
    with browser.open(stub_server.url + "/ui/") as page:
        yield page


def test_the_page_is_served_with_headers_that_shut_others_out(stub_server):
    answer = stub_server.get("/ui/")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    for rule in ("default-src 'self'", "script-src 'self'", "object-src 'none'", "base-uri 'none'"):
        assert rule in policy
    assert "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for element in ("chat", "input", "send-btn", "abort-btn"):
        assert f'id="{element}"' in answer.text
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", answer.text)


def test_a_file_is_sent_once_and_then_only_confirmed(stub_server):
    url = stub_server.url + "/ui/main.js"
    first = requests.get(url, timeout=10)
    assert first.headers["Content-Type"] == "text/javascript; charset=utf-8"
    again = requests.get(url, timeout=10, headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304 and not again.content
    assert again.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "name",
    [
        "../views.py",
        "..%2fviews.py",
        "%2e%2e/views.py",
        "vendor/fetch.py",
        "vendor",
        "x",
        "/etc/passwd",
    ],
)
def test_nothing_but_the_files_of_the_table_is_served(stub_server, name):
    session = requests.Session()
    request = requests.Request("GET", stub_server.url).prepare()
    request.url = f"{stub_server.url}/ui/{name}"  # requests would tidy the address
    answer = session.send(request, timeout=10, allow_redirects=False)
    session.close()
    assert answer.status_code in (308, 404)
    assert b"import" not in answer.content and b"root:" not in answer.content


def test_the_folder_without_its_slash_leads_to_the_page(stub_server):
    answer = requests.get(stub_server.url + "/ui", timeout=10, allow_redirects=False)
    assert answer.status_code == 308 and answer.headers["Location"] == "ui/"
    assert requests.get(stub_server.url + "/ui", timeout=10).status_code == 200


@pytest.mark.parametrize(
    ("method", "accept", "is_wanted"),
    [
        ("GET", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("GET", "*/*", False),  # curl, requests
        ("GET", "application/json, text/plain, */*", False),  # axios
        ("GET", "application/json, text/html;q=0.5", False),
        ("GET", "", False),
        ("POST", "text/html", False),
    ],
)
def test_only_a_browser_wants_the_page(method, accept, is_wanted):
    headers = {"Accept": accept} if accept else {}
    environ = EnvironBuilder(method=method, headers=headers).get_environ()
    assert wants_page(Request(environ)) == is_wanted


def test_the_vendored_files_are_those_of_their_packages():
    assert len(list(fetch.rows())) > 10
    assert not fetch.differing()


def test_an_answer_in_chinese_appears_piece_by_piece(browser, short_server):
    with browser.open(short_server.url + "/ui/", locale="zh-CN") as page:
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        assert page.ask("attribute", selector="#send-btn", name="aria-label") == "发送"
        assert page.ask("value", selector="#model") == "qwen-demo"
        page.send(CHINESE)
        lengths = page.ask("watch")
        assert len(lengths) >= 5, lengths
        assert lengths == sorted(lengths)
        assert CHINESE in page.ask("lastAnswer")
        assert page.text(".message.user .content") == CHINESE
        assert page.text(".note") == "已达到长度上限，回答被截断。"
        assert page.ask("value", selector="#input") == ""
        assert page.count(".typing-indicator") == 0


def test_stopping_keeps_what_has_come_and_frees_the_engine(browser, stub_server):
    with browser.open(stub_server.url + "/ui/") as page:
        page.send("hello there")
        page.ask("waitForText", text="hello there")
        assert stub_server.row()["running"] == 1
        assert page.count("#send-btn:not([hidden])") == 0
        page.click("#abort-btn")
        wait_for(lambda: stub_server.row()["running"] == 0, 5)
        page.ask("waitUntilIdle")
        kept = page.ask("lastAnswer")
        assert "hello there" in kept
        assert page.text(".note") == "Stopped."
        assert page.count(".error") == 0
        assert page.evaluate("document.activeElement.id") == "input"
        assert page.ask("lastAnswer") == kept
    stub_server.wait_until_idle()


def test_a_closed_page_frees_the_engine(browser, stub_server):
    with browser.open(stub_server.url + "/ui/") as page:
        page.send("hello there")
        wait_for(lambda: stub_server.row()["running"] == 1)
    wait_for(lambda: stub_server.row()["running"] == 0, 5)


def test_the_next_turn_knows_the_turns_before_and_a_new_chat_does_not(page):
    page.ask("answerWith", body=events("<think>", "hm", "</think>\n\n", "the first ", "answer"))
    page.send("the first question")
    page.ask("waitForText", text="the first answer")
    assert page.text(".thought summary") == "Thoughts"
    page.send("the second question")
    page.ask("waitUntilIdle")
    page.click("#new-btn")
    assert page.count(".message") == 0 and page.count("#welcome:not([hidden])") == 1
    page.send("the third question")
    page.ask("waitUntilIdle")
    first, second, third = (body["messages"] for body in page.ask("requests"))
    asked = {"role": "user", "content": "the first question"}
    assert first == [asked]
    assert second == [
        asked,
        {"role": "assistant", "content": "the first answer"},
        {"role": "user", "content": "the second question"},
    ]
    assert third == [{"role": "user", "content": "the third question"}]


def test_the_real_server_remembers_the_turn_before(browser, short_server):
    with browser.open(short_server.url + "/ui/") as page:
        page.send("apple")
        page.ask("waitUntilIdle")
        page.click("#new-btn")
        page.send("pear")
        page.ask("waitUntilIdle")
        assert "apple" not in page.ask("lastAnswer")
    with browser.open(short_server.url + "/ui/") as page:
        page.ask("answerWith", body=events("noted"))
        page.send("apple")
        page.ask("waitForText", text="noted")
        page.ask("answerForReal")
        page.send("pear")
        page.ask("waitUntilIdle")
        assert {"apple", "noted", "pear"} <= set(page.ask("lastAnswer").split())


def test_markup_of_the_reader_and_of_the_model_stays_text(browser, short_server):
    with browser.open(short_server.url + "/ui/") as page:
        page.send(IMAGE)
        page.ask("waitUntilIdle")
        assert page.text(".message.user .content") == IMAGE
        assert IMAGE in page.ask("lastAnswer")
        assert page.evaluate("window.pwned") is None
        assert page.count("#chat img") == 0


def test_no_attack_in_an_answer_becomes_more_than_text(page):
    page.ask("answerWith", body=events(*ATTACKS))
    page.send("attack")
    page.ask("waitUntilIdle")
    shown = page.ask("lastAnswer")
    assert IMAGE in shown and "<script>window.pwned=1</script>" in shown
    assert page.evaluate("window.pwned") is None
    answer = ".message.bot .content"
    for kind in ("img", "script", "svg", "iframe", "style", "form", "[style]", "[onclick]", "[id]"):
        assert page.count(f"{answer} {kind}") == 0, kind
    links = page.evaluate(
        f"[...document.querySelectorAll('{answer} a[href]')].map((a) => [a.href, a.rel])"
    )
    assert links and all(href.startswith("https://example.com/") for href, _ in links), links
    assert all("noopener" in rel for _, rel in links)


def test_markdown_is_shown_as_what_it_means(page):
    page.ask("answerWith", body=events(*MARKDOWN))
    page.send("markdown")
    page.ask("waitUntilIdle")
    answer = ".message.bot .content"
    for kind in ("h1", "li strong", "th[align=right]", "pre code.language-python", "a[href]"):
        assert page.count(f"{answer} {kind}") == 1, kind
    page.ask("waitFor", selector=f"{answer} .hljs-keyword")
    assert page.text("pre code") == "def f(x):\n    return 1\n"
    page.click(".code .copy")
    page.ask("waitFor", selector=".copy[data-i18n=copied]")
    page.ask("fill", selector="#input", text="")
    page.ask("press", key="Control+V")
    assert page.ask("value", selector="#input").rstrip("\n") == "def f(x):\n    return 1"


def test_a_full_queue_is_told_and_retried(browser, start_server):
    server = start_server(
        "--stub", "--stub-step-seconds", "0.01", "--max-model-len", "400",
        "--max-running", "1", "--max-waiting", "1",
    )  # fmt: skip
    body = {"messages": MESSAGES, "max_tokens": 300, "stop": ["nowhere"]}
    with browser.open(server.url + "/ui/", expected_complaint="503") as page:
        with raw_request(server, body), raw_request(server, body):
            wait_for(lambda: server.row()["running"] == server.row()["waiting"] == 1)
            page.send("is there room")
            page.ask("waitFor", selector=".error .retry")
            assert re.match(
                r"The server is busy .* about \d+ s\.", page.text(".error > p:first-child")
            )
            assert page.text(".message.user .content") == "is there room"
        wait_for(lambda: server.row()["running"] == server.row()["waiting"] == 0)
        page.click(".retry")
        page.ask("waitForText", text="is there room")
        assert page.count(".error") == 0 and page.count(".message.user") == 1
        page.click("#abort-btn")
        page.ask("waitUntilIdle")
        assert [m["content"] for m in page.ask("requests")[-1]["messages"]] == ["is there room"]


FAILURES = [
    (
        {"body": events("half", ending='data: {"error": {"message": "it broke"}}\n\n')},
        "The server failed to answer.",
        "it broke",
    ),
    (
        {"body": events("half", ending="")},
        "The connection was lost before the answer was complete.",
        None,
    ),
    (
        {
            "status": 503,
            "type": "application/json",
            "headers": {"Retry-After": "7"},
            "body": '{"error": "服务繁忙，请稍后重试", "queue_size": 10, "max_queue_size": 10}',
        },
        "The server is busy and its queue is full. Try again in about 7 s.",
        None,
    ),
    (
        {
            "status": 400,
            "type": "application/json",
            "body": '{"error": {"message": "too long", "code": "context_length_exceeded"}}',
        },
        "This conversation no longer fits the model. Start a new chat.",
        None,
    ),
    (
        {"status": 502, "type": "text/html", "body": "<h1>Bad Gateway</h1>"},
        "The server failed to answer.",
        "HTTP 502",
    ),
]


@pytest.mark.parametrize(("answer", "words", "detail"), FAILURES)
def test_a_failure_is_told_beside_what_has_come_and_forgotten_by_the_next_turn(
    browser,
    stub_server,
    answer,
    words,
    detail,
):
    status = str(answer.get("status", ""))
    with browser.open(stub_server.url + "/ui/", expected_complaint=status) as page:
        page.ask("answerWith", **answer)
        page.send("a question that fails")
        page.ask("waitFor", selector=".error .retry")
        assert page.text(".error > p:first-child") == words
        if detail:
            assert page.text(".error .detail") == detail
        else:
            assert page.count(".error .detail") == 0
        assert page.ask("lastAnswer").strip() == ("" if status else "half")
        page.ask("answerForReal")
        page.ask("answerWith", body=events("fine"))
        page.send("another question")
        page.ask("waitForText", text="fine")
        assert page.count(".retry") == 0
        assert [m["content"] for m in page.ask("requests")[-1]["messages"]] == ["another question"]


def test_a_key_is_asked_for_where_the_server_wants_one(browser, stub_server):
    with browser.open(stub_server.url + "/ui/", expected_complaint="401") as page:
        assert page.count("#key-row[hidden]") == 1
        page.ask("answerWith", status=401, type="application/json", body="{}")
        page.send("hello")
        page.ask("waitFor", selector="#key-row:not([hidden])")


def test_an_input_methods_enter_does_not_send_and_shift_enter_starts_a_line(page):
    page.ask("fill", selector="#input", text="nihao")
    page.ask("enterOfInputMethod")
    assert page.count(".message") == 0
    page.ask("press", key="Shift+Enter")
    assert page.ask("value", selector="#input") == "nihao\n"
    assert page.count(".message") == 0


def test_the_page_follows_a_reader_at_the_end_and_leaves_one_who_scrolled_up(browser, stub_server):
    chat = "document.getElementById('chat')"
    wait = "await new Promise((done) => setTimeout(done, 200));"
    with browser.open(stub_server.url + "/ui/", height=400) as page:
        page.send("one line\n\nand another " * 3)
        page.evaluate(f"(async () => {{ while ({chat}.scrollTop < 600) {{ {wait} }} }})()")
        page.evaluate(f"{chat}.scrollTop = 100")
        height = page.evaluate(f"{chat}.scrollHeight")
        page.evaluate(f"(async () => {{ {wait} }})()")
        assert page.evaluate(f"{chat}.scrollHeight") > height
        assert page.evaluate(f"{chat}.scrollTop") == 100
        page.evaluate(f"(async () => {{ {chat}.scrollTop = 1e9; {wait} }})()")
        for draft in ("a", "a\nvery\nlong\ndraft", "a\nvery\nlong\ndraft!", ""):
            page.ask("fill", selector="#input", text=draft)
            left = page.evaluate(
                f"(async () => {{ {wait}"
                f" return {chat}.scrollHeight - {chat}.scrollTop - {chat}.clientHeight }})()"
            )
            assert left <= 2, draft
        page.click("#abort-btn")
        page.ask("waitUntilIdle")


def test_a_phone_shows_everything_without_sideways_scrolling(browser, stub_server):
    wide = "```\n" + "x" * 300 + "\n```\n\n| a | b |\n|---|---|\n| " + "y" * 300 + " | z |\n\n"
    with browser.open(stub_server.url + "/ui/", width=390, height=844) as page:
        page.ask("answerWith", body=events(wide, "https://example.com/" + "z" * 300))
        page.send("w" * 300)
        page.ask("waitUntilIdle")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.getElementById('chat').scrollWidth") <= 390
        for button in ("#new-btn", "#language-btn", "#theme-btn", "#send-btn"):
            box = page.evaluate(
                f"document.querySelector('{button}').getBoundingClientRect().toJSON()"
            )
            assert box["left"] >= 0 and box["right"] <= 390 and box["width"] >= 32, button


def test_theme_and_language_follow_the_system_until_they_are_chosen(browser, stub_server):
    with browser.open(stub_server.url + "/ui/", theme="dark") as page:
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.click("#theme-btn")
        page.click("#language-btn")
        page.evaluate("location.reload()")
        page.ask("waitFor", selector="#model option[value=qwen-demo]")
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        assert page.text("#welcome h2") == "有什么可以帮你？"


@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_the_event_reader_is_indifferent_to_line_ends_and_cuts(page, cut):
    lines = [": comment", "id: 1", "event: e", "data: a", "data:b", "", "data", "", "data: 你", ""]
    expected = [["e", "a\nb"], ["", ""], ["", "你"]]
    for end in ("\n", "\r\n", "\r"):
        text = end.join([*lines, ""]) + ":" * (end == "\r")
        pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
        got = page.evaluate(
            "import('/ui/sse.js').then(({ EventParser }) => { const parser = new EventParser();"
            f" return {json.dumps(pieces)}.flatMap((piece) => parser.push(piece)); }})"
        )
        assert [[event["event"], event["data"]] for event in got] == expected, repr(end)
