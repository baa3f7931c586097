"""The engine's side of `trials.py`: starts that process when first needed, and asks it.

Knows descriptors and deadlines. Called by several threads at once, never by the engine's loop.
"""

import logging
import os
import socket
import subprocess
import sys
import threading

from workers.grammar.errors import GrammarError
from workers.grammar.tokenizer_file import TokenizerFile

log = logging.getLogger(__name__)

# A trial has seconds of processor time; on a crowded machine these take longer.
_WAIT_SECONDS = 60.0


class TrialClient:
    """One process of trials, started again if it is lost."""

    def __init__(self, file: TokenizerFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def run(self, source: str) -> None:
        """Let a text be tried; raise GrammarError if it should not be compiled here."""
        here, there = socket.socketpair()
        with here:
            here.settimeout(_WAIT_SECONDS)
            with there:
                self._send(there)
            try:
                here.sendall(source.encode())
                here.shutdown(socket.SHUT_WR)
                with here.makefile("rb") as stream:
                    answer = stream.read().decode(errors="replace")
            except OSError as error:
                log.warning("a grammar's trial ended early: %s", error)
                answer = ""
        if answer != "+":
            too_much = "the grammar cannot be used: it takes too long or too much memory to compile"
            raise GrammarError(answer.removeprefix("-") or too_much)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _send(self, peer: socket.socket) -> None:
        """Hand one end of a pair to the process."""
        with self._lock:
            for is_last in (False, True):
                if self._control is None:
                    self._start()
                try:
                    assert self._control is not None
                    socket.send_fds(self._control, [b"t"], [peer.fileno()])
                    return
                except OSError:
                    self._stop()
                    if is_last:
                        raise

    def _start(self) -> None:
        path, vocab_size, eos_token_ids = self._file
        self._control, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.grammar.trials", path, str(vocab_size)]
                + [str(token_id) for token_id in eos_token_ids],
                stdin=there.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
