"""FetchProgress: shows how far a fetch has come, by what has arrived on the disk.

A bar with rate and time left on a terminal, else a line every five seconds. Knows a function that
says how many bytes are there, and nothing of who fetches them.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self, TextIO

INTERVAL_SECONDS = 5.0
_LOOK_SECONDS = 0.2
# Over how many looks a rate is taken.
_WINDOW = 50


class FetchProgress:
    """Watches `measure` from entering to leaving; bytes that were there before do not count."""

    def __init__(
        self,
        label: str,
        total: int,
        measure: Callable[[], int],
        out: TextIO,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._label, self._total, self._out = label, total, out
        self._measure, self._interval = measure, interval
        self._looks: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._before = self._measure()
        self._began = time.monotonic()
        show = self._show_bar if self._out.isatty() else self._write_lines
        self._thread = threading.Thread(target=show, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None:
            seconds = time.monotonic() - self._began
            self._write(f"fetched {size_text(self._total)} in {seconds:.0f} s")

    def _write_lines(self) -> None:
        self._write(f"fetching {size_text(self._total)}")
        last = self._began
        while not self._ended.wait(min(_LOOK_SECONDS, self._interval)):
            done = self._look()
            if time.monotonic() - last >= self._interval:
                last = time.monotonic()
                self._write(self._line(done))

    def _show_bar(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(file=self._out)) as bar:
            task = bar.add_task(self._label, total=self._total)
            while not self._ended.wait(_LOOK_SECONDS):
                bar.update(task, completed=self._look())
            bar.update(task, completed=self._look())

    def _look(self) -> int:
        done = min(self._total, max(0, self._measure() - self._before))
        self._looks.append((time.monotonic(), done))
        return done

    def _line(self, done: int) -> str:
        (began, first), (now, last) = self._looks[0], self._looks[-1]
        rate = (last - first) / (now - began) if now > began else 0.0
        left = f", {(self._total - done) / rate:.0f} s left" if rate > 0 else ""
        return f"{size_text(done)} of {size_text(self._total)}, {size_text(rate)}/s{left}"

    def _write(self, text: str) -> None:
        self._out.write(f"{self._label}: {text}\n")
        self._out.flush()


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder, links left out; 0 if there is none."""
    total = 0
    for file in folder.rglob("*"):
        try:
            if file.is_file() and not file.is_symlink():
                total += file.stat().st_size
        except OSError:  # renamed meanwhile
            continue
    return total


def size_text(num_bytes: float) -> str:
    """Return a number of bytes in GB or MB, of powers of ten as hubs count them."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
