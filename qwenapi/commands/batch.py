"""`qwenapi batch`: put a file of requests to a running server, and write a file of answers.

In OpenAI's batch format, for any address that is posted to and answers JSON. Whatever ends it, the
same command goes on where it stopped. Exit code 0: all lines have their answer, 1: some failed or
are left, 2: a file is unfit, and nothing was sent.
"""

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qwenapi.batches.files import BadBatch, BatchInput, BatchOutput
from qwenapi.batches.line import BatchLine
from qwenapi.commands.ask import KEY_VARIABLE
from qwenapi.commands.batch_caller import BatchCaller, BatchStopped
from qwenapi.commands.bench.command import URL, positive
from qwenapi.commands.check_service import Server

BAD_INPUT = 2
INTERRUPTED = 130
CONCURRENCY = 32
TIMEOUT_SECONDS = 3600.0
REPORT_SECONDS = 5.0
TICK_SECONDS = 0.2

Report = Callable[[int, int], None]  # takes the numbers of lines done and failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the command its flags."""
    parser.add_argument("-i", "--input", type=Path, required=True, help="the requests, JSON lines")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the answers so far")
    parser.add_argument("--url", default=URL, help="the server, without /v1 (default: %(default)s)")
    key = f"the key to present, where keys are asked for (default: ${KEY_VARIABLE})"
    parser.add_argument("--api-key", help=key)
    many = "requests under way at a time (default: %(default)s)"
    parser.add_argument("--concurrency", type=positive, metavar="N", default=CONCURRENCY, help=many)


def main(parsed: argparse.Namespace) -> int:
    """Send what has no answer yet; return the exit code."""
    key = parsed.api_key or os.environ.get(KEY_VARIABLE, "")
    try:
        server = Server(parsed.url.rstrip("/").removesuffix("/v1"), TIMEOUT_SECONDS, key)
        asked = BatchInput(parsed.input)
        output = BatchOutput(parsed.output)
        server.connect()  # what is not there now is not waited for
        run = BatchRun(server, asked, output, parsed.concurrency)
        with _progress(len(asked.ids), run.num_done) as report:
            run.wait(report)
    except (BadBatch, ValueError) as error:
        print(f"qwenapi: {error}", file=sys.stderr)
        return BAD_INPUT
    except (BatchStopped, OSError) as error:
        print(f"qwenapi: stopped: {error}; the same command goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("qwenapi: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    print(f"{run.num_done} lines, {run.num_failed} failed: {parsed.output}", file=sys.stderr)
    return int(run.num_failed > 0)


class BatchRun:
    """Threads that share one iterator of requests and one output."""

    def __init__(
        self, server: Server, asked: BatchInput, output: BatchOutput, concurrency: int
    ) -> None:
        self.num_done = len(output.done & asked.ids)
        self.num_failed = len(output.failed & asked.ids)
        self._left = asked.without(output.done)
        self._output = output
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._caller = BatchCaller(server, self._stopping)
        # An interrupt does not wait for answers that nobody will keep.
        self._threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(concurrency)
        ]

    def wait(self, report: Report) -> None:
        """Run to the end; raise what stopped it, KeyboardInterrupt leaving whole lines only."""
        for thread in self._threads:
            thread.start()
        try:
            for thread in self._threads:
                while thread.is_alive():
                    report(self.num_done, self.num_failed)
                    thread.join(TICK_SECONDS)
            report(self.num_done, self.num_failed)
        finally:
            self._stopping.set()
            self._lock.acquire()  # for good: no thread begins another line
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while (line := self._next()) is not None:
                answer, is_failed = self._caller.answer(line)
                with self._lock:
                    self._output.append(answer)
                    self.num_done += 1
                    self.num_failed += is_failed
        except Exception as error:  # raised again by wait()
            self._error = self._error or error
            self._stopping.set()

    def _next(self) -> BatchLine | None:
        with self._lock:
            return None if self._stopping.is_set() else next(self._left, None)


@contextlib.contextmanager
def _progress(total: int, done: int) -> Iterator[Report]:
    """Yield what to tell of the progress: a bar on a terminal, else a line every 5 s."""
    if not sys.stderr.isatty():
        yield _lines(total)
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("0 failed", total=total, completed=done)
        yield lambda done, failed: bar.update(task, completed=done, description=f"{failed} failed")


def _lines(total: int) -> Report:
    last = time.monotonic()

    def report(done: int, failed: int) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_SECONDS:
            last = time.monotonic()
            print(f"{done} of {total} lines, {failed} failed", file=sys.stderr, flush=True)

    return report
