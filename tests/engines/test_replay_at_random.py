"""Replays against stub engines in this process that end between any two messages, by seed."""

import random

import pytest

from qwenapi.engines.generation import Generation
from qwenapi.settings.table import etc_dir
from tests.engines.test_replay import House, deliver
from workers.config import EngineConfig
from workers.wire.protocol import (
    Abort,
    Accepted,
    Failed,
    Generate,
    SamplingParams,
    StepUpdate,
    wire_id,
)
from workers.worker.stub import Poison, StubEngine

CONFIG = EngineConfig(str(etc_dir() / "models" / "demo"), stub=True, max_num_seqs=12)
ROUNDS = 3000


class Died(Exception):
    """What the stub's os._exit is here."""


class Engine:
    """A stub engine at the other end of a link; it hears and speaks only when it is told to."""

    def __init__(self, house):
        self.core = StubEngine(CONFIG)
        self.link = house.engine(self.core.card)
        self.num_heard = 0

    def hear(self):
        sent = self.link._connection.sent
        for message in sent[self.num_heard :]:
            if isinstance(message, Generate):
                self.core.add((0, message.wid), message)
                deliver(self.link, Accepted(message.wid))
            elif isinstance(message, Abort):
                self.core.abort((0, message.wid), message.choices)
        self.num_heard = len(sent)

    def step(self):
        """Return what a step has to say, which may never be sent; raise Died."""
        output = self.core.step()
        return StepUpdate(
            **{
                kind: [message for _, message in getattr(output, kind)]
                for kind in StepUpdate.__struct_fields__
            }
        )


def request_of(draw, serial, poison=None):
    params = SamplingParams(
        max_tokens=draw.randint(1, 60) if poison is None else 40,
        seed=draw.randrange(1000),
        logit_bias={} if poison is None else {0: float(poison)},
    )
    return Generate(
        wid=wire_id(serial, 0),
        request_id=f"r{serial}",
        prompt_ids=tuple(range(20, 20 + draw.randint(1, 30))),
        params=params,
        choices=tuple(range(draw.randint(1, 3))),
    )


def undisturbed(request):
    core, tokens = StubEngine(CONFIG), {choice: [] for choice in request.choices}
    core.add((0, request.wid), request)
    while core.has_work:
        for _, chunk in core.step().chunks:
            tokens[chunk.choice] += chunk.token_ids
    return tokens


@pytest.mark.parametrize(
    "num_poisons",
    [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)],
)
def test_the_innocent_get_their_own_tokens_and_the_guilty_are_found(
    tmp_path, monkeypatch, num_poisons
):
    def die(code):
        raise Died

    monkeypatch.setattr("workers.worker.stub.os._exit", die)
    num_replays = 0
    for seed in range(60):
        simulation = Simulation(House(tmp_path), random.Random(seed), num_poisons)
        simulation.run()
        simulation.check()
        num_replays += simulation.house.replays.num_replays
    assert num_replays > 60 * (1 + 10 * num_poisons), "too little happened"


def test_kills_between_which_answers_go_on_change_no_token(tmp_path):
    for seed in range(12):
        simulation = Simulation(House(tmp_path), random.Random(seed), 0, steps_between_kills=45)
        simulation.run()
        simulation.check()


class Simulation:
    """One fate: who asks, who leaves, when an engine ends; an accident happens once at most, or
    whenever an engine has made so many steps: those who wait have had their turn by then.
    """

    def __init__(self, house, draw, num_poisons, steps_between_kills=0):
        self.house, self.draw = house, draw
        self.engine = Engine(house)
        self.left = set()
        self.may_have_accident = num_poisons < 2  # a fourth loss would be nobody's proof
        self.steps_between_kills, self.num_steps = steps_between_kills, 0
        guilty = [request_of(draw, i, Poison.EXIT) for i in range(num_poisons)]
        innocent = [request_of(draw, i) for i in range(num_poisons, draw.randint(12, 30))]
        self.guilty = {request.request_id for request in guilty}
        requests = guilty + innocent
        draw.shuffle(requests)
        self.generations = [Generation(request, house.mailbox) for request in requests]
        for generation in self.generations:
            self.engine.link.submit(generation)
        self.engine.hear()

    def run(self):
        for _ in range(ROUNDS):
            if all(generation.is_over for generation in self.generations):
                return
            self.go_on()
            if self.draw.random() < 0.02:
                self.leave()
            self.house.tick()
        raise AssertionError("it never ends")

    def go_on(self):
        if self.engine is None:
            if self.draw.random() < 0.3:
                self.engine = Engine(self.house)
            return
        self.engine.hear()
        try:
            said = self.engine.step()
        except Died:
            self.lose()
            return
        self.num_steps += 1
        if self.steps_between_kills:
            if self.num_steps % self.steps_between_kills == 0:
                self.lose()
            else:
                deliver(self.engine.link, said)
            return
        is_alone = self.house.replays._suspect is not None  # an accident would be held against it
        if self.may_have_accident and not is_alone and self.draw.random() < 0.05:
            self.may_have_accident = False
            self.lose()
            return
        deliver(self.engine.link, said)

    def lose(self):
        self.house.lose(self.engine.link)
        self.engine = None

    def leave(self):
        generation = self.draw.choice(self.generations)
        if generation.request.request_id not in self.guilty and not generation.is_over:
            self.left.add(generation)
            generation.close()

    def check(self):
        self.house.tick()
        assert not self.house.replays.waiting and not self.house.replays.is_isolating
        for generation in self.generations:
            failures = [e for e in self.house.events(generation) if isinstance(e, Failed)]
            if generation.request.request_id in self.guilty:
                assert [failure.reason for failure in failures] == ["engine_crash"]
            elif generation not in self.left:
                assert not failures
                assert generation.token_ids == undisturbed(generation.request)
