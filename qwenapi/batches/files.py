"""A batch's files: its requests, checked before any is sent, and its answers, gone on with.

Lines are read one at a time; of a million only the ids are held. Knows no server.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from qwenapi.batches.line import OUTPUT_BEGINNING, BatchLine, LineError, parse_line

# Fields that a server's own batches refuse: no line may change what others read, or end later.
UNFIT = {"/v1/responses": ("conversation", "background")}


# Of one line, which is held whole, and many times over as what its JSON says.
MAX_LINE_BYTES = 64 * 1024 * 1024


class BadBatch(Exception):
    """A file that nothing can be done with before somebody mends it: what is wrong, and where."""

    def __init__(self, path: Path, what: str, line: int | None = None) -> None:
        super().__init__(f"{path}, line {line}: {what}" if line else f"{path}: {what}")
        self.what = what
        self.line = line


class OutputBusy(BadBatch):
    """An output that another process is writing."""


class BatchInput:
    """The requests of a file; nothing of it is kept but the ids."""

    def __init__(self, path: Path, url: str = "", max_line_bytes: int = MAX_LINE_BYTES) -> None:
        """Read the whole file once; raise BadBatch for the first line that is none, is longer, or
        with a `url` is for another one.
        """
        self._path = path
        self._url = url
        self._max_line_bytes = max_line_bytes
        self.ids: set[str] = set()
        if path.exists() and not path.is_file():
            raise BadBatch(path, "must be a file, as it is read twice")
        for number, line in self._lines():
            if line.custom_id in self.ids:
                raise self._bad(number, f"'custom_id' {line.custom_id!r} was used before")
            self.ids.add(line.custom_id)

    def without(self, done: set[str]) -> Iterator[BatchLine]:
        """Yield the requests that are still to be sent, in the order of the file."""
        return (line for _, line in self._lines() if line.custom_id not in done)

    def _lines(self) -> Iterator[tuple[int, BatchLine]]:
        try:
            with self._path.open("rb") as file:
                lines = iter(lambda: file.readline(self._max_line_bytes + 1), b"")
                for number, raw in enumerate(lines, 1):
                    if len(raw) > self._max_line_bytes:
                        raise self._bad(number, f"is longer than {self._max_line_bytes} bytes")
                    if raw.strip():
                        yield number, self._parse(number, raw)
        except OSError as error:
            raise BadBatch(self._path, str(error.strerror)) from error

    def _parse(self, number: int, raw: bytes) -> BatchLine:
        try:
            line = parse_line(raw)
        except LineError as error:
            raise self._bad(number, str(error)) from error
        if self._url and line.url != self._url:
            raise self._bad(number, f"'url' must be {self._url}, as the batch says")
        for name in UNFIT.get(self._url, ()):
            if line.body.get(name):
                raise self._bad(number, f"'body' must not have '{name}' in a batch")
        return line

    def _bad(self, number: int, what: str) -> BadBatch:
        return BadBatch(self._path, what, number)


class BatchOutput:
    """The answers so far, locked for this process; a line is appended whole, or torn by a kill and
    cut off by the next one who opens the file.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file; raise BadBatch where it holds anything but a batch's output."""
        self._path = path
        self.done: set[str] = set()
        self.failed: set[str] = set()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise OutputBusy(path, "another qwenapi batch is writing it") from error
        except OSError as error:
            raise BadBatch(path, str(error.strerror)) from error
        try:
            if not path.is_file():
                raise BadBatch(path, "must be a file, as it is read and gone on with")
            with path.open("rb") as lines:
                self._read(lines)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write it."""
        os.close(self._file)

    def append(self, line: bytes) -> None:
        """Write one line, or where there is no room for it nothing."""
        size = os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def flush(self) -> int:
        """Return the size once all of it is on the disk."""
        os.fsync(self._file)
        return os.fstat(self._file).st_size

    def _read(self, lines: Iterable[bytes]) -> None:
        size = 0
        for number, raw in enumerate(lines, 1):
            if not raw.startswith(OUTPUT_BEGINNING) and not OUTPUT_BEGINNING.startswith(raw):
                raise self._foreign(number)
            if not raw.endswith(b"\n"):
                os.ftruncate(self._file, size)
                return
            size += len(raw)
            self._note(number, raw)

    def _note(self, number: int, raw: bytes) -> None:
        try:
            line = json.loads(raw)
            self.done.add(line["custom_id"])
            if line["error"] is not None or line["response"]["status_code"] >= 400:
                self.failed.add(line["custom_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._foreign(number) from error

    def _foreign(self, number: int) -> BadBatch:
        return BadBatch(self._path, "is no answer of a batch; name another file", number)
