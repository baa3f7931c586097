"""A headless Chromium for tests: Debian's, driven by playwright-core in one node process.

What is missing is named in the reason of a skip: chromium, node, or a registry to install
playwright-core from. It is installed once, under pytest's cache.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.npm import installed

HERE = Path(__file__).resolve().parent


class Browser:
    """The process; `open` returns a page of a profile of its own."""

    def __init__(self, modules: Path, chromium: str) -> None:
        self._process = subprocess.Popen(
            ["node", str(HERE / "drive.mjs"), str(modules), chromium],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._receive()

    @contextmanager
    def open(self, url: str, expected_complaint: str = "", **options: Any) -> Iterator["Page"]:
        """Open a page; at its end nothing may have gone wrong in it but what was expected."""
        self.ask("open", url=url, **options)
        page = Page(self)
        try:
            yield page
            complaints = page.ask("complaints")
            if expected_complaint:
                complaints = [c for c in complaints if expected_complaint not in c]
            assert not complaints
        finally:
            page.ask("close")

    def ask(self, step: str, **values: Any) -> Any:
        """Have one step of steps.mjs done and return its result."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"step": step, **values}) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def _receive(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the browser's process has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]


class Page:
    """An open page, by the steps of steps.mjs that tests use most."""

    def __init__(self, browser: Browser) -> None:
        self.ask = browser.ask

    def send(self, text: str) -> None:
        self.ask("send", text=text)

    def click(self, selector: str) -> None:
        self.ask("click", selector=selector)

    def count(self, selector: str) -> int:
        return int(self.ask("count", selector=selector))

    def text(self, selector: str) -> str:
        return str(self.ask("text", selector=selector))

    def evaluate(self, script: str) -> Any:
        return self.ask("evaluate", script=script)


def start_browser(folder: Path) -> Browser:
    """Return a new browser, its driver installed in a folder; skip where something is missing."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    for name, path in {"chromium": chromium, "node": shutil.which("node")}.items():
        if path is None:
            pytest.skip(f"{name} is not installed (Debian: apt-get install chromium nodejs npm)")
    assert chromium
    return Browser(installed(HERE, folder), chromium)


@pytest.fixture(scope="session", name="browser")
def browser_fixture(pytestconfig: pytest.Config) -> Iterator[Browser]:
    """Return the browser that all tests of a run share."""
    assert pytestconfig.cache
    started = start_browser(pytestconfig.cache.mkdir("browser"))
    try:
        yield started
    finally:
        started.close()
