"""The process in which a caller's grammar is compiled first: `python -m workers.grammar.trials`.

It reads the tokenizer once and forks for every trial, so that one that crashes, hangs or eats
memory ends alone: the kernel stops it at its limits. What passed here takes the engine, which
compiles it once more, no more time, memory and stack than it took here.

    engine ── one end of a socket pair per trial ──► trials ── fork ──► a trial reads the text,
           ◄────────────────────────── "+", or "-" and why not ─────────┘ writes its answer, ends
"""

import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from workers.grammar.compile import STACK_BYTES, compile_source, walk
from workers.grammar.errors import GrammarError
from workers.grammar.tokenizer_file import TokenizerFile

if TYPE_CHECKING:
    from llguidance import LLTokenizer

TRIAL_SECONDS = 5  # of processor time
_TRIAL_BYTES = 1024 * 1024 * 1024
_NICENESS = 10


def serve(control: socket.socket, file: TokenizerFile) -> None:
    """Try what arrives until the engine has gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    os.nice(_NICENESS)
    tokenizer, _ = file.load()
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        with socket.socket(fileno=descriptors[0]) as peer:
            if os.fork() == 0:
                control.close()
                _limit()
                threading.stack_size(STACK_BYTES)
                trial = threading.Thread(target=_answer, args=(peer, tokenizer))
                trial.start()
                trial.join()
                os._exit(0)


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    size = used + STACK_BYTES + _TRIAL_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (TRIAL_SECONDS, TRIAL_SECONDS))


def _answer(peer: socket.socket, tokenizer: "LLTokenizer") -> None:
    with peer.makefile("rb") as stream:
        source = stream.read().decode()
    try:
        walk(compile_source(tokenizer, source))
        peer.sendall(b"+")
    except GrammarError as error:
        peer.sendall(b"-" + str(error).encode())


if __name__ == "__main__":
    _path, _size, *_ends = sys.argv[1:]
    serve(
        socket.socket(fileno=sys.stdin.fileno()),
        TokenizerFile(_path, int(_size), tuple(map(int, _ends))),
    )
