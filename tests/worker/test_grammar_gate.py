"""A request whose grammar is new waits at the gate, alone, and gets exactly one answer or none."""

import pytest

from tests.wire.test_protocol import CARD
from tests.worker.test_admission import ask
from workers.grammar.compiled_grammar import CompiledGrammar
from workers.grammar.errors import GrammarError
from workers.wire.grammar import Grammar
from workers.wire.protocol import Abort, Accepted, Rejected, wire_id
from workers.worker.admission import Admission
from workers.worker.grammar_gate import GrammarGate

GRAMMAR = Grammar(kind="regex", text="a")
COMPILED = CompiledGrammar(None, 10, (1,))
WID = wire_id(1, 0)


class SlowCompiler:
    """Knows what it is told to, and is done when it is told to be."""

    def __init__(self):
        self.outcomes = {}
        self.asking = []

    def known(self, grammar):
        return self.outcomes.get(grammar)

    def submit(self, grammar, done):
        self.asking.append(done)

    def finish(self, outcome):
        self.asking.pop(0)(outcome)


class Place:
    def __init__(self):
        self.compiler, self.admission = SlowCompiler(), Admission(CARD, max_waiting=5)
        self.answers, self.forwarded = [], []
        self.gate = GrammarGate(
            self.compiler,
            self.admission,
            lambda to, message: self.answers.append((to, message)),
            lambda to, message: self.forwarded.append((to, message)),
        )

    def enter(self, connection_id=7, **fields):
        request = ask(grammar=GRAMMAR, **fields)
        assert self.admission.decide((connection_id, request.wid), request) is None
        self.gate.enter(connection_id, request)
        return request


@pytest.fixture
def place():
    return Place()


def test_a_known_grammar_lets_through_at_once(place):
    place.compiler.outcomes[GRAMMAR] = COMPILED
    request = place.enter()
    assert place.answers == [(7, Accepted(WID))] and place.forwarded == [(7, request)]
    assert place.gate.take((7, WID)) is COMPILED and place.gate.take((7, WID)) is None


def test_a_new_grammar_is_waited_for_by_its_request_alone(place):
    first, second = place.enter(), place.enter(wid=wire_id(2, 0))
    assert not place.answers and not place.forwarded and place.admission.num_admitted == 2
    place.compiler.finish(COMPILED)
    assert place.answers == [(7, Accepted(WID))] and place.forwarded == [(7, first)]
    place.compiler.finish(COMPILED)
    assert place.forwarded[-1] == (7, second)


def test_a_grammar_that_cannot_be_done_is_refused_in_words_and_counts_no_more(place):
    place.enter()
    place.compiler.finish(GrammarError("it is too large"))
    [(to, answer)] = place.answers
    assert (to, type(answer), answer.reason, answer.message) == (
        7,
        Rejected,
        "invalid",
        "it is too large",
    )
    assert not place.forwarded and place.admission.num_admitted == 0
    place.compiler.outcomes[GRAMMAR] = GrammarError("known")
    place.enter()
    assert place.answers[-1][1].message == "known" and place.admission.num_admitted == 0


def test_a_request_aborted_at_the_gate_is_gone_without_a_word(place):
    place.enter()
    assert place.gate.abort(7, Abort(WID))
    assert not place.gate.abort(7, Abort(WID)) and place.admission.num_admitted == 0
    place.compiler.finish(COMPILED)
    assert not place.answers and not place.forwarded


def test_an_abort_of_some_choices_follows_the_request(place):
    request = place.enter(choices=(0, 1))
    abort = Abort(WID, choices=(1,))
    assert place.gate.abort(7, abort)
    place.compiler.finish(COMPILED)
    assert place.forwarded == [(7, request), (7, abort)]


def test_what_waits_for_a_connection_goes_with_it(place):
    place.enter()
    place.enter(connection_id=8)
    place.gate.close(7)
    assert place.admission.num_admitted == 1
    place.compiler.finish(COMPILED)
    place.compiler.finish(COMPILED)
    assert [to for to, _ in place.answers] == [8]


@pytest.mark.parametrize("ids", [{"thought_end_ids": (10**6,)}, {"thought_start_id": -1}])
def test_a_thought_of_tokens_the_model_has_not_is_invalid(place, ids):
    grammar = Grammar(kind="regex", text="a", **ids)
    assert place.admission.decide("k", ask(grammar=grammar)).reason == "invalid"
