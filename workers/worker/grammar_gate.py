"""GrammarGate: admitted requests wait here until their grammars are compiled.

Knows what waits and whom to answer. A grammar compiled before lets its request through at once;
others are compiled by the compiler's threads, and the one that is done sends the answer. Nobody
else waits meanwhile, and a request that is aborted meanwhile is gone without a word.
"""

import logging
import threading
from collections.abc import Callable

from workers.engine_core import Key
from workers.grammar.compiled_grammar import CompiledGrammar
from workers.grammar.compiler import GrammarCompiler, Outcome
from workers.grammar.errors import GrammarError, TooManyGrammars
from workers.wire.protocol import Abort, Accepted, Generate, Message, Rejected, RejectReason
from workers.worker.admission import Admission

log = logging.getLogger(__name__)

Send = Callable[[int, Message], None]


class GrammarGate:
    """Lets requests through to the loop once their grammars are compiled, or refuses them."""

    def __init__(
        self, compiler: GrammarCompiler, admission: Admission, answer: Send, forward: Send
    ) -> None:
        """`answer` sends to a connection, `forward` hands the loop what came of one."""
        self._compiler = compiler
        self._admission = admission
        self._answer = answer
        self._forward = forward
        self._lock = threading.Lock()
        self._waiting: dict[Key, list[Abort]] = {}
        self._compiled: dict[Key, CompiledGrammar] = {}

    def enter(self, connection_id: int, request: Generate) -> None:
        """Take an admitted request with a grammar; it is answered now or later."""
        grammar = request.grammar
        assert grammar is not None
        found = self._compiler.known(grammar)
        key = (connection_id, request.wid)
        with self._lock:
            if found is not None:
                self._settle(key, request, found)
                return
            self._waiting[key] = []
        self._compiler.submit(grammar, lambda outcome: self._leave(key, request, outcome))

    def abort(self, connection_id: int, message: Abort) -> bool:
        """Return whether an abort was for a request that waits here; if so it is dealt with."""
        key = (connection_id, message.wid)
        with self._lock:
            if key not in self._waiting:
                return False
            if message.choices:
                self._waiting[key].append(message)
            else:
                self._drop(key)
            return True

    def close(self, connection_id: int) -> None:
        """Forget what waits for a connection that has ended."""
        with self._lock:
            for key in [key for key in self._waiting if key[0] == connection_id]:
                self._drop(key)

    def take(self, key: Key) -> CompiledGrammar | None:
        """Return the compiled grammar of a request that was let through, once."""
        return self._compiled.pop(key, None)

    def _leave(self, key: Key, request: Generate, outcome: Outcome) -> None:
        with self._lock:
            aborts = self._waiting.pop(key, None)
            if aborts is None:
                return
            self._settle(key, request, outcome)
            for abort in aborts:
                self._forward(key[0], abort)

    def _settle(self, key: Key, request: Generate, outcome: Outcome) -> None:
        connection_id, wid = key
        if isinstance(outcome, GrammarError):
            self._admission.release(key)
            log.info("request %s rejected: %s", request.request_id, outcome)
            is_for_now = isinstance(outcome, TooManyGrammars)
            reason: RejectReason = "overloaded" if is_for_now else "invalid"
            self._answer(connection_id, Rejected(wid=wid, reason=reason, message=str(outcome)))
            return
        self._compiled[key] = outcome
        # As without a grammar, Accepted goes out before the loop can see the request.
        self._answer(connection_id, Accepted(wid))
        self._forward(connection_id, request)

    def _drop(self, key: Key) -> None:
        del self._waiting[key]
        self._admission.release(key)
