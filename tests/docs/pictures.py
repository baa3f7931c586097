"""Take the pictures of the pages anew: `python -m tests.docs.pictures [NAME ...]`.

    chat, chat-dark   the chat page with an answer of the demo model
    reference-dark    the reference page
    status            the status page after a minute of load, with two engines on the stub
    top               what `qwenapi top --once` prints beside eight streams
    dashboard         the first rows of the shipped dashboard, drawn by dashboard.py

Needs chromium, node and npm; the dashboard a Prometheus too. Knows where pictures lie; what is on
them comes from servers that it starts and stops.
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.docs import dashboard
from tests.docs.pages import ROOT
from tests.e2e.browser.chromium import Browser, start_browser
from tests.ops.prometheus import DASHBOARD, Prometheus
from tests.running_server import RunningServer, wait_for

FOLDER = ROOT / "docs/pictures"
QUESTION = "Write quick sort in Python"
BOARD_ROWS = 30  # of the dashboard's grid: traffic and latency
LOAD_SECONDS = 60
CHAT = "/v1/chat/completions"
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, {"model": "qwen-demo", "max_tokens": 120}),
    (CHAT, {"model": "Qwen3-32B", "max_tokens": 60}),
    (CHAT, {"model": "MyCoder", "max_tokens": 90}),
    (CHAT, {"max_tokens": 40}),
    ("/generate", {"prompt": "a b c d e f", "max_length": 80}),
)


@contextmanager
def serving(*flags: str) -> Iterator[RunningServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = RunningServer(Path(folder) / "run", *flags)
        try:
            yield server.wait_until_ready()
            server.stop()
        finally:
            server.close()


def chat(browser: Browser) -> None:
    with serving() as server:
        for theme, name in (("light", "chat"), ("dark", "chat-dark")):
            with browser.open(server.url + "/ui/", theme=theme, width=1000, height=640) as page:
                page.send(QUESTION)
                page.ask("waitFor", selector=".message.bot .code")
                page.ask("waitUntilIdle")
                page.ask("screenshot", path=str(FOLDER / f"{name}.png"))


def reference(browser: Browser) -> None:
    ready = ':text("chat_stream") >> nth=0'
    with serving("--stub", "--profile", "all") as server:
        url = f"{server.url}/docs/#post-{CHAT}"
        with browser.open(url, ready=ready, theme="dark", width=1100, height=700) as page:
            time.sleep(2)  # it goes to the address of its own accord, and says nothing when there
            page.ask("screenshot", path=str(FOLDER / "reference-dark.png"))


def status(browser: Browser) -> None:
    flags = ("--stub", "--stub-step-seconds", "0.02", "--profile", "all")
    with serving(*flags, "--data-parallel-size", "2") as server, ThreadPoolExecutor(12) as pool:
        ends = time.monotonic() + LOAD_SECONDS
        asked = [pool.submit(keep_calling, server, number, ends) for number in range(12)]
        url, ready = server.url + "/ui/status", "#engines tbody tr >> nth=0"
        with browser.open(url, ready=ready, width=1000, height=860) as page:
            time.sleep(LOAD_SECONDS - 5)
            page.ask("screenshot", path=str(FOLDER / "status.png"))
        for one in asked:
            one.result()


def top(browser: Browser) -> None:
    flags = ("--stub", "--stub-step-seconds", "0.02", "--profile", "all")
    with serving(*flags, "--data-parallel-size", "2") as server, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(call, server, number, 400) for number in range(8)]
        wait_for(lambda: all(server.row(engine)["running"] for engine in (0, 1)))
        time.sleep(2)
        command = ["-m", "qwenapi", "top", "--once", "--run-dir", str(server.run_dir)]
        environ = os.environ | {"FORCE_COLOR": "1"}
        shown = subprocess.check_output([sys.executable, *command], env=environ, text=True)
        assert all(one.result() for one in asked)
    console = Console(record=True, width=130, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.from_ansi("$ bin/qwenapi top\n" + shown.rstrip()), soft_wrap=True)
    page = console.export_html(theme=MONOKAI, inline_styles=True)
    padded = page.replace("</head>", "<style>pre { padding: 14px 18px }</style></head>")
    take(browser, padded, "pre", "top")


def board(browser: Browser) -> None:
    flags = ("--stub", "--stub-step-seconds", "0.02", "--profile", "all")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(*flags, "--data-parallel-size", "2") as server,
        closing(Prometheus(Path(folder), server.url.removeprefix("http://"))) as prometheus,
    ):
        with ThreadPoolExecutor(12) as pool:
            ends = time.monotonic() + LOAD_SECONDS
            list(pool.map(lambda number: keep_calling(server, number, ends), range(12)))
        panels = [panel for panel in DASHBOARD["panels"] if panel["gridPos"]["y"] < BOARD_ROWS]
        page = dashboard.page(panels, prometheus)
    take(browser, page, "main", "dashboard", width=dashboard.WIDTH)


def keep_calling(server: RunningServer, number: int, ends: float) -> None:
    """Make requests with pauses, so that a minute has its ups and downs."""
    while time.monotonic() < ends:
        call(server, number, 0)
        time.sleep(0.2 * (number % 4) * (1 + int(ends - time.monotonic()) // 15 % 2))


def call(server: RunningServer, number: int, max_tokens: int) -> bool:
    path, body = CALLS[number % len(CALLS)]
    body = body | ({} if path == CHAT else {"prompt": f"{number} {body['prompt']}"})
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": f"{number}: what is a hash table?"}]
    if max_tokens:
        body |= {"max_tokens" if path == CHAT else "max_length": max_tokens}
    return requests.post(server.url + path, json=body, timeout=120).ok


def take(browser: Browser, page: str, selector: str, name: str, width: int = 1100) -> None:
    """Take a picture of one element of a page of HTML."""
    url = "data:text/html;charset=utf-8," + urllib.parse.quote(page)
    with browser.open(url, ready=selector, width=width) as opened:
        opened.ask("screenshot", path=str(FOLDER / f"{name}.png"), selector=selector)


PICTURES = {
    "chat": chat,
    "reference": reference,
    "status": status,
    "top": top,
    "dashboard": board,
}


def main(names: list[str]) -> None:
    cache = ROOT / ".pytest_cache/d/browser"
    cache.mkdir(parents=True, exist_ok=True)
    with closing(start_browser(cache)) as browser:
        for name in names or PICTURES:
            PICTURES[name](browser)


if __name__ == "__main__":
    main(sys.argv[1:])
