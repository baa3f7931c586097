"""SupervisorPipe: an engine process tells its supervisor of progress, readiness or failure.

One JSON object per message, never a pickle.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from workers import parent_death
from workers.errors import ExitCode, RankLost, WorkerError


class SupervisorPipe:
    """The engine's end of the pipe to its supervisor."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def end_with_supervisor(self) -> None:
        parent_death.hold(self._pipe.fileno())

    def progress(self, what: str, fraction: float) -> None:
        self._send(event="progress", what=what, fraction=fraction)

    def ready(self, port: int) -> None:
        """`port` is the one for other machines, 0: none."""
        self._send(event="ready", port=port)

    def rendezvous(self, url: str) -> None:
        """`url` is where the engine's ranks on other machines find the first."""
        self._send(event="rendezvous", url=url)

    def fatal(self, message: str) -> None:
        self._send(event="fatal", message=message)

    @contextmanager
    def fatal_errors(self, when: str) -> Iterator[None]:
        """At an error that has words for the operator, tell them and end the process with its code;
        `when` follows "out of memory". RankLost has its cause elsewhere, which is to be told first.
        """
        try:
            yield
        except RankLost:
            raise
        except WorkerError as error:
            self.fatal(str(error))
            sys.exit(error.exit_code)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            self.fatal(f"out of memory {when}; see --max-num-seqs and --dtype")
            sys.exit(ExitCode.OUT_OF_MEMORY)

    def _send(self, **event: Any) -> None:
        self._pipe.send_bytes(msgspec.json.encode(event))


def _is_out_of_memory(error: Exception) -> bool:
    """Tell memory that ran out, by name where it is torch's: this module never imports torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
