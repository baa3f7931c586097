"""The status page in a real browser, against real servers on the stub engine."""

import os
import re
import signal

import pytest

from qwenapi.keys.key import Key, new_key
from qwenapi.keys.key_file import edited
from tests.e2e.browser.chromium import browser_fixture  # noqa: F401
from tests.e2e.test_http_on_stub import MESSAGES, raw_request
from tests.running_server import RunningServer, wait_for

READY = "#engines tbody tr >> nth=0"
COLUMNS = ("engine", "device", "state", "running", "waiting", "cache", "tokens", "restarts")
LONG = {"messages": MESSAGES, "max_tokens": 2000, "stop": ["nowhere"]}


def figure(page, name):
    return page.text(f"#figures .{name} dd")


def engines(page):
    """Return the table's rows, each by column."""
    rows = page.evaluate(
        "[...document.querySelectorAll('#engines tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def drawn(page, number):
    """Return how many colours a plot's pixels have; one of nothing but its ground has one."""
    return page.evaluate(
        f"(() => {{ const canvas = document.querySelectorAll('.plot canvas')[{number}];"
        " const { data } = canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height);"
        " return new Set(new Uint32Array(data.buffer)).size; })()"
    )


def colour_of_line(page, name):
    return page.evaluate(
        f"getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()"
    )


@pytest.fixture
def server(start_server) -> RunningServer:
    flags = ("--stub", "--stub-step-seconds", "0.02", "--data-parallel-size", "2")
    return start_server(*flags, "--api-server-count", "2", "--step-timeout", "2")


def test_its_address_and_its_figures_are_served(stub_server):
    page = stub_server.get("/ui/status")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", page.text)
    figures = stub_server.get("/ui/status.json")
    assert figures.headers["Cache-Control"] == "no-store"
    assert "history" not in figures.json()
    assert "history" in stub_server.get("/ui/status.json?history=1").json()
    for query in ("history=yes", "history="):
        refused = stub_server.get("/ui/status.json?" + query)
        assert refused.status_code == 400 and "history" in refused.json()["error"]["message"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_shows_what_runs_and_draws_it(browser, server, theme):
    server.text("hello", max_tokens=20)
    with browser.open(server.url + "/ui/status", ready=READY, theme=theme) as page:
        assert page.text("#ready") == "Ready"
        assert [row["state"] for row in engines(page)] == ["ready", "ready"]
        assert figure(page, "running") == "0"
        with raw_request(server, LONG), raw_request(server, LONG):
            wait_for(lambda: figure(page, "running") == "2")
            wait_for(lambda: 50 < float(figure(page, "tokens")) < 110)
            wait_for(lambda: sum(int(row["running"]) for row in engines(page)) == 2)
            assert figure(page, "waiting") == "0" and figure(page, "cache").endswith("%")
            assert figure(page, "firstTokenP50").endswith("ms")
        wait_for(lambda: figure(page, "running") == "0")
        wait_for(lambda: min(drawn(page, number) for number in range(4)) > 2)
        before = colour_of_line(page, "--accent")
        page.click("#theme-btn")
        assert colour_of_line(page, "--accent") != before
        page.click("#language-btn")
        assert page.text("#ready") == "就绪" and "引擎" in page.text("#engines thead")
        assert "等待中" in page.text(".plot:first-child .u-legend")
        assert page.count(".plot canvas") == 4


def test_engines_that_hang_or_are_killed_are_seen_to_go_and_to_come_back(browser, server):
    with browser.open(server.url + "/ui/status", ready=READY) as page:
        states = set()

        def are_back():
            rows = engines(page)
            states.add(rows[0]["state"])
            return all(row["restarts"] == "1" and row["state"] == "ready" for row in rows)

        os.kill(server.row(0)["pid"], signal.SIGSTOP)  # long enough gone that a poll must see it
        os.kill(server.row(1)["pid"], signal.SIGKILL)
        wait_for(are_back, 60, lambda: f"{engines(page)} {states}")
        assert len(states) > 1, states
        wait_for(lambda: page.text("#ready") == "Ready")


def test_a_server_that_goes_away_is_told_and_found_again(browser, start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.01")
    port = server.url.rpartition(":")[2]
    complaint = "ERR_CONNECTION"
    with browser.open(server.url + "/ui/status", complaint, ready=READY) as page:
        assert page.count("#gone[hidden]") == 1 and page.count("#board.stale") == 0
        assert server.stop() == 0
        page.ask("waitFor", selector="#gone:not([hidden])")
        assert re.search(r"no answer for \d+ s", page.text("#gone"))
        assert page.count("#board.stale") == 1
        start_server("--stub", "--port", port)
        page.ask("waitFor", selector="#gone[hidden]")
        assert page.count("#board.stale") == 0 and page.text("#ready") == "Ready"
        assert page.evaluate("document.querySelector('.tokens dd').textContent") in (
            "–",
            "0",
        )  # its counters began anew, which is no rate below nothing


def test_a_key_is_asked_for_and_must_have_the_scope(browser, start_server, tmp_path):
    path = tmp_path / "keys.json"
    keys = {}
    with edited(path) as listed:
        for scope in ("metrics", "inference"):
            fresh = keys[scope] = new_key()
            listed.append(Key(fresh.id, fresh.sha256, tenant="acme", scopes=(scope,)))
    server = start_server("--stub", "--auth-keys", str(path))
    url = server.url + "/ui/status"
    with browser.open(url, "the server responded with", ready="#key-row:not([hidden])") as page:
        assert page.count("#engines tbody tr") == 0
        page.ask("fill", selector="#key", text=keys["inference"].text)
        page.evaluate("document.getElementById('key').blur()")
        page.ask("waitFor", selector="#gone:not([hidden])")
        assert "metrics" in page.text("#gone")
        page.ask("fill", selector="#key", text=keys["metrics"].text)
        page.evaluate("document.getElementById('key').blur()")
        page.ask("waitFor", selector="#engines tbody tr")
        assert page.count("#key-row[hidden]") == page.count("#gone[hidden]") == 1


def test_an_alert_is_shown_while_it_is_up(browser, start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.02", "--alerts-ttft-p95", "0.001",
                          "--alerts-min-requests", "1")  # fmt: skip
    with browser.open(server.url + "/ui/status", ready=READY) as page:
        assert page.count("#alerts[hidden]") == 1
        server.text("hello", max_tokens=3)
        page.ask("waitFor", selector="#alerts li.warning")
        assert "First tokens take long." in page.text("#alerts")


def test_lines_have_holes_where_nothing_is_known_and_end_after_fifteen_minutes(
    browser, stub_server
):
    with browser.open(stub_server.url + "/ui/status", ready=READY) as page:
        early, late = page.evaluate(
            """import('/ui/status_history.js').then(({ History }) => {
                 const history = new History();
                 const ttft = { p50: 0.1, p95: 0.2 };
                 const reading = (at, tokens, more = {}) => ({
                   at, tokens, ttft, kv_cache_usage: 0.5, engines: [],
                   requests: { running: 1, waiting: 0 }, ...more });
                 const before = [{ at: 990, tokens_per_second: 3, ttft }];
                 history.add(reading(1000, 7, { history: before }));
                 history.add(reading(1002, 27));
                 history.interrupt();
                 history.interrupt();
                 history.add(reading(1010, 5));
                 history.add(reading(1009, 99));
                 const early = history.columns(["rate", "running"]);
                 history.add(reading(1905.5, 6));
                 return [early, history.columns([])];
               })"""
        )
    times, rates, running = early
    assert times == [990, 1000, 1002, 1002.001, 1010] and late == [[1010, 1905.5]]
    assert rates == [3, None, 10, None, None] and running == [None, 1, 1, None, 1]


def test_the_chat_page_leads_to_it_and_back(browser, stub_server):
    with browser.open(stub_server.url + "/ui/") as page:
        page.click("#status-link")
        page.ask("waitFor", selector="#engines tbody tr")
        page.click('.actions a[href="./"]')
        page.ask("waitFor", selector="#chat")


def test_a_phone_shows_it_without_sideways_scrolling(browser, stub_server):
    url = stub_server.url + "/ui/status"
    with browser.open(url, ready=READY, width=390, height=844) as page:
        page.ask("waitFor", selector=".plot canvas")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.getElementById('board').scrollWidth") <= 390
