"""Compiles grammars beside the step loop, and keeps what it compiled.

Knows texts, threads and a cache of bounded size. Refuses to know requests and the wire. Every text
is tried in another process first (`trials.py`); equal texts are compiled once, whoever asks.
"""

import logging
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from workers.grammar.compile import STACK_BYTES, compile_source
from workers.grammar.compiled_grammar import CompiledGrammar
from workers.grammar.errors import GrammarError, TooManyGrammars
from workers.grammar.source import source_of
from workers.grammar.tokenizer_file import TokenizerFile
from workers.grammar.trial_client import TrialClient
from workers.wire.grammar import Grammar

if TYPE_CHECKING:
    from llguidance import LLTokenizer

log = logging.getLogger(__name__)

MAX_CACHED = 128
MAX_CACHED_BYTES = 16 * 1024 * 1024
# One caller's slow grammars leave room for those of others.
_NUM_THREADS = 4
_NICENESS = 10
_MAX_QUEUED = 1024


Outcome = CompiledGrammar | GrammarError
Done = Callable[[Outcome], None]


class _Key(NamedTuple):
    """What of a grammar decides how it compiles."""

    kind: str
    text: str
    follows_thought: bool

    @classmethod
    def of(cls, grammar: Grammar) -> "_Key":
        return cls(grammar.kind, grammar.text, bool(grammar.thought_end_ids))


class GrammarCompiler:
    """The compiled grammars of one engine, and the threads that make them."""

    def __init__(self, file: TokenizerFile) -> None:
        """Read the tokenizer, for a second; if it cannot be read, all grammars are refused."""
        self._file = file
        self._tokenizer: LLTokenizer | None = None
        self._refusal: GrammarError | None = None
        self._token_ids: dict[str, int] = {}
        try:
            self._tokenizer, self._token_ids = file.load()
        except GrammarError as error:
            log.warning("%s", error)
            self._refusal = error
        self._trials = TrialClient(file)
        self._lock = threading.Lock()
        self._known: OrderedDict[_Key, Outcome] = OrderedDict()
        self._num_bytes = 0
        self._asking: dict[_Key, list[Done]] = {}
        self._queue: queue.Queue[Grammar | None] = queue.Queue(_MAX_QUEUED)
        self._threads: list[threading.Thread] = []

    def known(self, grammar: Grammar) -> Outcome | None:
        """Return what came of an equal grammar before, or None; never waits."""
        if self._refusal is not None:
            return self._refusal
        with self._lock:
            return self._find(_Key.of(grammar))

    def submit(self, grammar: Grammar, done: Done) -> None:
        """Have a grammar compiled, and `done` called with what came of it, from another thread."""
        key = _Key.of(grammar)
        with self._lock:
            found = self._find(key)
            if found is None:
                is_new = key not in self._asking
                self._asking.setdefault(key, []).append(done)
                if is_new:
                    self._start_threads()
                    found = self._enqueue(key, grammar)
        if found is not None:
            done(found)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Return a compiled grammar, waiting for it; raise GrammarError if it cannot be done."""
        found = self.known(grammar)
        if found is None:
            answers: queue.Queue[Outcome] = queue.Queue()
            self.submit(grammar, answers.put)
            found = answers.get()
        if isinstance(found, GrammarError):
            raise found
        return found

    def close(self) -> None:
        """End the threads and the process of trials."""
        for _ in self._threads:
            self._queue.put(None)
        self._trials.close()

    def _find(self, key: _Key) -> Outcome | None:
        found = self._known.get(key)
        if isinstance(found, CompiledGrammar) and found.is_spoiled:
            self._drop(key)
            return None
        if found is not None:
            self._known.move_to_end(key)
        return found

    def _keep(self, key: _Key, outcome: Outcome) -> None:
        self._known[key] = outcome
        self._num_bytes += len(key.text)
        while len(self._known) > MAX_CACHED or self._num_bytes > MAX_CACHED_BYTES:
            self._drop(next(iter(self._known)))

    def _drop(self, key: _Key) -> None:
        del self._known[key]
        self._num_bytes -= len(key.text)

    def _enqueue(self, key: _Key, grammar: Grammar) -> GrammarError | None:
        try:
            self._queue.put_nowait(grammar)
        except queue.Full:
            del self._asking[key]
            return TooManyGrammars("too many grammars are being compiled: try again later")
        return None

    def _start_threads(self) -> None:
        while len(self._threads) < _NUM_THREADS:
            thread = threading.Thread(target=self._run, name="grammar", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self) -> None:
        while (grammar := self._queue.get()) is not None:
            outcome = self._outcome(grammar)
            key = _Key.of(grammar)
            with self._lock:
                self._keep(key, outcome)
                asking = self._asking.pop(key)
            for done in asking:
                done(outcome)

    def _outcome(self, grammar: Grammar) -> Outcome:
        try:
            source = source_of(grammar, self._token_ids)
            self._trials.run(source)
            return self._compile(source)
        except GrammarError as error:
            return error
        except Exception:
            log.exception("a grammar's compilation failed")
            return GrammarError("the grammar could not be compiled")

    def _compile(self, source: str) -> CompiledGrammar:
        """Compile on a thread of its own: how much stack that takes is the grammar's to say."""
        found: list[Outcome] = []

        def compile() -> None:
            with suppress(OSError):  # of this thread alone; the loop goes first
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            try:
                assert self._tokenizer is not None
                matcher = compile_source(self._tokenizer, source)
                file = self._file
                found.append(CompiledGrammar(matcher, file.vocab_size, file.eos_token_ids))
            except GrammarError as error:
                found.append(error)

        _run_with_stack(compile)
        if not found:
            raise RuntimeError("the compiling thread ended without a result")
        if isinstance(found[0], GrammarError):
            raise found[0]
        return found[0]


_stack_lock = threading.Lock()


def _run_with_stack(work: Callable[[], None]) -> None:
    with _stack_lock:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=work, name="grammar compilation", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
