"""What becomes of requests whose engine is lost, on links whose other end is this test."""

import time

import gevent
import msgspec
import pytest

from qwenapi.engines import replay
from qwenapi.engines.generation import ACQUITTAL_TOKENS, Generation
from qwenapi.engines.isolation import IsolationLock
from qwenapi.engines.link import EngineLink
from qwenapi.engines.mailbox import Mailbox
from qwenapi.engines.quarantine import Quarantine
from qwenapi.engines.replay import FIRST_WAVE, MAX_LOSSES, MAX_REPLAYS, Replays
from qwenapi.engines.routing import Router
from tests.wire.test_protocol import CARD
from workers.wire.connection import ConnectionEnded
from workers.wire.engine_stats import ENGINE_LAYOUT, Phase
from workers.wire.protocol import (
    Abort,
    Accepted,
    Chunk,
    Failed,
    Finished,
    Generate,
    Hello,
    Rejected,
    SamplingParams,
    Started,
    StepUpdate,
    wire_id,
)
from workers.wire.shared_memory import SharedMemory


class Wire:
    """A connection to nobody: keeps what is sent, gives what the test puts in."""

    def __init__(self):
        self.sent, self.coming = [], []

    def send(self, message):
        self.sent.append(message)

    def receive(self):
        if not self.coming:
            raise ConnectionEnded
        messages, self.coming = self.coming, []
        return messages

    def close(self):
        pass


class House:
    """Replays, their links, and one mailbox for all callers."""

    def __init__(self, run_dir):
        self.links = []
        self.num_freed = 0
        self.replays = Replays(run_dir, lambda: self.links, self._on_free, Quarantine(), Router())
        self.mailbox = Mailbox()

    def engine(self, card=CARD):
        link = EngineLink(Wire(), Hello(1, 1, len(self.links), "", card), self.replays)
        self.links.append(link)
        return link

    def ask(self, link, serial, *, choices=(0,), is_started=True, **params):
        """Return a request that runs on an engine, or waits in its queue."""
        asked = SamplingParams(**({"max_tokens": 1000, "seed": 7} | params))
        wid = wire_id(serial, 0)
        request = Generate(
            wid=wid, request_id=f"r{serial}", prompt_ids=(1, 2, 3), params=asked, choices=choices
        )
        generation = Generation(request, self.mailbox)
        link.submit(generation)
        deliver(link, Accepted(wid))
        if is_started:
            deliver(link, StepUpdate(started=[Started(wid, 2)]))
        return generation

    def lose(self, link):
        self.links.remove(link)
        link.end()

    def tick(self):
        self.replays.tick()
        gevent.sleep(0)

    def events(self, generation):
        return [event for sender, event in self.mailbox._events if sender is generation]

    def _on_free(self):
        self.num_freed += 1


def deliver(link, *messages):
    link._connection.coming += messages
    with pytest.raises(ConnectionEnded):
        link.read()


def asked(link):
    return [message for message in link._connection.sent if isinstance(message, Generate)]


def give(link, generation, *, choice=0, count=1, finish_reason=None, wid=None):
    """Let an engine send tokens of a choice."""
    position = len(generation.token_ids[choice])
    ids = tuple(range(position, position + count))
    chunk = Chunk(wid or generation.wid, choice, position, ids, finish_reason)
    deliver(link, StepUpdate(chunks=[chunk]))


def start(link, generation):
    deliver(link, Accepted(generation.wid), StepUpdate(started=[Started(generation.wid, 0)]))


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def test_a_lost_request_is_asked_again_behind_what_has_come_and_for_open_choices_only(house):
    first = house.engine()
    generation = house.ask(first, 5, choices=(0, 1, 2))
    give(first, generation, choice=0, count=4)
    give(first, generation, choice=1, count=2, finish_reason="stop")
    house.lose(first)
    house.tick()
    assert generation.link is None, "there is nobody to ask yet"
    second = house.engine()
    house.tick()
    (again,) = asked(second)
    assert again == msgspec.structs.replace(
        generation.request,
        wid=wire_id(5, 1),
        choices=(0, 2),
        resume=((0, 1, 2, 3), ()),
        queue_timeout=again.queue_timeout,
    )
    start(second, generation)
    give(second, generation, choice=0)
    assert generation.token_ids[0] == [0, 1, 2, 3, 4]
    assert house.replays.num_replays == 1


def test_a_caller_learns_of_one_acceptance_and_one_start(house):
    first = house.engine()
    generation = house.ask(first, 1)
    house.lose(first)
    second = house.engine()
    house.tick()
    start(second, generation)
    give(second, generation, finish_reason="length")
    deliver(second, StepUpdate(finished=[Finished(generation.wid, 3, 1)]))
    kinds = [type(event) for event in house.events(generation)]
    assert kinds == [Accepted, Started, Chunk, Finished]
    assert generation.num_cached_tokens == 2, "the first attempt's"


def test_tokens_of_a_former_attempt_are_dropped(house):
    link = house.engine()
    generation = house.ask(link, 1)
    former = generation.wid
    link.withdraw(generation)
    generation.prepare_attempt(1.0)
    link.submit(generation)
    give(link, generation, wid=former)
    assert generation.num_tokens == 0
    give(link, generation)
    assert generation.num_tokens == 1
    assert Abort(former) in link._connection.sent


def test_what_was_not_accepted_is_its_askers_business(house):
    link = house.engine()
    request = Generate(wid=1, request_id="r", prompt_ids=(1,), params=SamplingParams(max_tokens=1))
    generation = Generation(request, house.mailbox)
    link.submit(generation)
    house.lose(link)
    assert house.events(generation) == [Failed(1, "engine_lost")]
    assert not house.replays.waiting


def test_an_answer_that_lacks_only_its_last_word_is_whole(house):
    link = house.engine()
    generation = house.ask(link, 1)
    give(link, generation, count=3, finish_reason="length")
    house.lose(link)
    assert house.events(generation)[-1] == Finished(generation.wid, 3, 3)
    assert not house.replays.waiting and house.replays.num_replays == 0


def test_a_caller_who_leaves_while_nobody_computes_is_forgotten(house):
    link = house.engine()
    stays, leaves = house.ask(link, 1), house.ask(link, 2)
    house.lose(link)
    leaves.close()
    second = house.engine()
    house.tick()
    assert [request.request_id for request in asked(second)] == [stays.request.request_id]


def test_a_choice_that_ends_while_nobody_computes_is_not_asked_for(house):
    link = house.engine()
    generation = house.ask(link, 1, choices=(0, 1))
    house.lose(link)
    generation.close_choice(0)
    second = house.engine()
    house.tick()
    assert asked(second)[0].choices == (1,)


def test_replays_come_in_waves_those_in_the_middle_of_an_answer_first(house):
    link = house.engine()
    queued = [house.ask(link, i, is_started=False) for i in range(10)]
    started = [house.ask(link, i) for i in range(10, 10 + FIRST_WAVE + 4)]
    house.lose(link)
    second = house.engine()
    house.tick()
    house.tick()
    assert [generation.wid for generation in started[:FIRST_WAVE]] == [
        request.wid for request in asked(second)
    ]
    for generation in started[:FIRST_WAVE]:
        start(second, generation)
    house.tick()
    assert len(asked(second)) == len(started) + len(queued)
    # A queue of their own: those keep the time they were given.
    limits = {request.request_id: request.queue_timeout for request in asked(second)}
    assert limits["r0"] == 300 and limits["r10"] <= 60


def test_another_model_does_not_go_on_with_an_answer(house):
    link = house.engine()
    generation = house.ask(link, 1)
    house.lose(link)
    other = house.engine(msgspec.structs.replace(CARD, model_hash="another"))
    house.tick()
    assert house.events(generation)[-1] == Failed(generation.wid, "model_changed")
    assert not asked(other)


def test_a_request_is_replayed_three_times_at_most(house):
    for _ in range(MAX_REPLAYS + 1):
        link = house.engine()
        if house.replays.num_replays == 0:
            generation = house.ask(link, 1)
        generation.crash_count = 0  # or it would be found guilty first
        house.tick()
        start(link, generation)
        house.lose(link)
    assert house.events(generation)[-1] == Failed(generation.wid, "engine_unavailable")
    assert house.replays.num_replays == MAX_REPLAYS


def test_a_request_waits_for_engines_so_long_and_no_longer(house, monkeypatch):
    link = house.engine()
    generation = house.ask(link, 1)
    house.lose(link)
    house.tick()
    assert not generation.is_over
    monkeypatch.setattr(replay, "MAX_WAIT_SECONDS", 0.0)
    house.tick()
    assert house.events(generation)[-1] == Failed(generation.wid, "engine_unavailable")
    assert not house.replays.waiting


def test_a_started_request_that_finds_no_place_in_time_does_not_blame_a_queue(house):
    link = house.engine()
    generation = house.ask(link, 1)
    house.lose(link)
    second = house.engine()
    house.tick()
    deliver(second, StepUpdate(failed=[Failed(generation.wid, "queue_timeout")]))
    assert house.events(generation)[-1] == Failed(generation.wid, "engine_unavailable")


def test_a_refused_replay_waits_on_unless_no_engine_could_take_it(house):
    link = house.engine()
    one, two = house.ask(link, 1), house.ask(link, 2)
    house.lose(link)
    second = house.engine()
    house.tick()
    deliver(
        second,
        Rejected(wid=one.wid, reason="draining"),
        Rejected(wid=two.wid, reason="too_long"),
    )
    assert house.replays.waiting == [one]
    assert house.events(two)[-1] == Failed(two.wid, "model_changed")


def lose_twice(house, generations_of):
    """Return an engine come after two losses, and the requests that were on both others."""
    link = house.engine()
    generations = generations_of(link)
    house.lose(link)
    for _ in range(2):
        link = house.engine()
        for _ in range(3):
            house.tick()
            for generation in generations:
                if generation.link is link:
                    start(link, generation)
        if house.replays.waiting or house.replays._suspect:
            return link, generations
        house.lose(link)
    raise AssertionError("nobody is suspect")


def test_suspects_run_alone_until_they_are_acquitted(house):
    link, (one, two, three) = lose_twice(house, lambda link: [house.ask(link, i) for i in range(3)])
    assert [g.link for g in (one, two, three)] == [link, None, None]
    assert house.replays.is_isolating and house.num_freed == 0
    give(link, one, count=ACQUITTAL_TOKENS)
    house.tick()
    assert [g.link for g in (one, two, three)] == [None, link, None]
    assert Abort(wire_id(0, 2)) in link._connection.sent, "it steps back for the next"
    give(link, two, count=3, finish_reason="stop")
    deliver(link, StepUpdate(finished=[Finished(two.wid, 3, 3)]))
    house.tick()
    assert [g.link for g in (one, three)] == [None, link]
    start(link, three)
    give(link, three, count=ACQUITTAL_TOKENS)
    house.tick()
    house.tick()
    assert [g.link for g in (one, three)] == [link, link], "the last one just goes on"
    assert (one.crash_count, three.crash_count) == (0, 0)
    assert not house.replays.is_isolating and house.num_freed == 1


def test_who_is_alone_at_two_more_losses_is_guilty_and_quarantined_and_nobody_else(house):
    link, (guilty, innocent) = lose_twice(
        house, lambda link: [house.ask(link, 0, temperature=0.5), house.ask(link, 1)]
    )
    assert guilty.link is link
    house.lose(link)
    assert not guilty.is_over, "somebody may have killed the engine"
    link = house.engine()
    house.tick()
    assert innocent.link is link
    start(link, innocent)
    give(link, innocent, count=ACQUITTAL_TOKENS)
    house.tick()
    assert guilty.link is link
    house.lose(link)
    assert house.events(guilty)[-1] == Failed(guilty.wid, "engine_crash")
    assert guilty.request in house.replays.quarantine
    assert innocent.request not in house.replays.quarantine
    link = house.engine()
    house.tick()
    assert innocent.link is link and not innocent.is_over


@pytest.mark.parametrize("num_tokens", [ACQUITTAL_TOKENS, 40])
@pytest.mark.parametrize("num_choices", [1, 3])
def test_engines_that_end_for_reasons_of_their_own_cost_nobody_an_answer(
    house, num_tokens, num_choices
):
    link = house.engine()
    generations = [house.ask(link, i, choices=tuple(range(num_choices))) for i in range(4)]
    for _ in range(MAX_LOSSES):
        house.lose(link)
        house.tick()
        link = house.engine()
        house.tick()
        assert [generation.link for generation in generations] == [link] * 4
        assert not house.replays.is_isolating
        for generation in generations:
            start(link, generation)
            for choice in range(num_choices):
                give(link, generation, choice=choice, count=-(-num_tokens // num_choices))
    assert not any(generation.is_over for generation in generations)
    house.lose(link)
    assert house.events(generations[0])[-1] == Failed(generations[0].wid, "engine_unavailable"), (
        "one that ends engines now and then would end them for ever"
    )


def test_what_is_given_less_between_two_losses_is_suspect(house):
    link = house.engine()
    generation = house.ask(link, 1)
    house.lose(link)
    for count in (ACQUITTAL_TOKENS - 1, 0):
        link = house.engine()
        house.tick()
        start(link, generation)
        if count:
            give(link, generation, count=count)
            house.lose(link)
    assert generation.crash_count == 2 and house.replays.is_isolating


@pytest.mark.parametrize("count", [0, 1, ACQUITTAL_TOKENS - 1])
def test_one_that_ends_in_the_middle_of_its_trial_is_tried_once_more(house, count):
    link, (suspect, innocent) = lose_twice(house, lambda link: [house.ask(link, i) for i in (0, 1)])
    give(link, suspect, count=count)
    house.lose(link)
    assert not suspect.is_over and house.replays.is_isolating
    link = house.engine()
    house.tick()
    # The next of the suspects, then the first again.
    assert innocent.link is link
    start(link, innocent)
    give(link, innocent, count=ACQUITTAL_TOKENS)
    house.tick()
    assert suspect.link is link
    start(link, suspect)
    give(link, suspect, count=count)
    house.lose(link)
    assert house.events(suspect)[-1] == Failed(suspect.wid, "engine_crash")
    assert suspect.request in house.replays.quarantine and not innocent.is_over


def test_one_that_passes_its_second_trial_starts_anew(house):
    link, (suspect,) = lose_twice(house, lambda link: [house.ask(link, 0)])
    give(link, suspect)
    house.lose(link)
    link = house.engine()
    house.tick()
    start(link, suspect)
    give(link, suspect, count=ACQUITTAL_TOKENS)
    house.tick()
    house.tick()
    assert (suspect.num_losses, suspect.crash_count, suspect.num_lonely_losses) == (0, 0, 0)
    assert not house.replays.is_isolating and not suspect.is_over


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_time_spent_while_suspects_are_tried_costs_nobody_an_answer(
    house, monkeypatch, tmp_path, where
):
    real, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead[0])

    def pass_time():
        for _ in range(int(replay.MAX_WAIT_SECONDS)):
            ahead[0] += 2
            for link in house.links:
                link.last_pong = time.monotonic()
            house.tick()

    if where == "here":
        link, generations = lose_twice(house, lambda link: [house.ask(link, i) for i in range(3)])
        pass_time()
        for generation in generations:
            give(link, generation, count=ACQUITTAL_TOKENS)
            pass_time()
            for other in generations:
                if other.link is link:
                    start(link, other)
    else:
        theirs = IsolationLock(tmp_path)
        assert theirs.acquire()
        link = house.engine()
        generations = [house.ask(link, i) for i in range(3)]
        house.lose(link)
        link = house.engine()
        pass_time()
        assert [generation.link for generation in generations] == [None] * 3
        theirs.release()
    house.tick()
    house.tick()
    assert [generation.link for generation in generations] == [link] * 3
    assert not any(generation.is_over for generation in generations)


def test_time_without_an_engine_counts_though_there_are_suspects(house, monkeypatch):
    link, (one, two) = lose_twice(house, lambda link: [house.ask(link, i) for i in range(2)])
    house.links.remove(link)
    house.replays.on_lost([one], is_planned=True)
    real = time.monotonic
    house.tick()
    monkeypatch.setattr(time, "monotonic", lambda: real() + replay.MAX_WAIT_SECONDS + 1)
    house.tick()
    for generation in (one, two):
        assert house.events(generation)[-1] == Failed(generation.wid, "engine_unavailable")


def test_time_spent_waiting_counts_no_more_once_an_answer_has_gone_on(house, monkeypatch):
    link = house.engine()
    generation = house.ask(link, 1)
    for _ in range(3):
        house.lose(link)
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda now=now: now + 0.75 * replay.MAX_WAIT_SECONDS)
        house.tick()
        link = house.engine()
        house.tick()
        start(link, generation)
        monkeypatch.undo()
        assert not generation.is_over
        give(link, generation, count=ACQUITTAL_TOKENS)


def test_an_end_that_was_planned_makes_no_suspects(house):
    for _ in range(MAX_REPLAYS):
        link = house.engine()
        if house.replays.num_replays == 0:
            generation = house.ask(link, 1)
        house.tick()
        house.links.remove(link)
        house.replays.on_lost([generation], is_planned=True)
    assert generation.crash_count == 0 and not house.replays.is_isolating


@pytest.fixture
def row(house, tmp_path):
    """Return what an engine publishes, and let it be published by those that come."""
    path = tmp_path / "engines.shm"
    memory = SharedMemory.create(path, ENGINE_LAYOUT, 1)
    row = memory.lease(0)
    row.update(generation=1, phase=Phase.IDLE, beat_ns=time.monotonic_ns(), step_timeout_ns=10**12)

    def engine(card=CARD):
        link = EngineLink(Wire(), Hello(1, 1, 0, str(path), card), house.replays)
        house.links.append(link)
        return link

    house.engine = engine
    yield row
    memory.close()


def test_an_engine_that_ends_while_it_drains_ended_as_planned(house, row):
    for phase, crash_count in ((Phase.DRAINING, 0), (Phase.STEPPING, 1)):
        row["phase"] = Phase.STEPPING
        link = house.engine()
        generation = house.ask(link, crash_count)
        row["phase"] = phase
        house.lose(link)
        assert generation.crash_count == crash_count


def test_a_suspect_waits_for_an_engine_that_works_for_nobody(house, row):
    generation = house.ask(house.engine(), 1)
    generation.crash_count = 1
    house.lose(house.links[0])
    row["running"] = 1  # another process's
    link = house.engine()
    house.tick()
    assert not asked(link) and house.replays.is_isolating
    row["running"] = 0
    house.tick()
    assert asked(link)


def test_while_another_process_tries_a_suspect_nothing_is_replayed(house, tmp_path):
    theirs = IsolationLock(tmp_path)
    link = house.engine()
    generation = house.ask(link, 1)
    house.lose(link)
    second = house.engine()
    assert theirs.acquire() and house.replays.is_isolating
    house.tick()
    assert generation.link is None
    theirs.release()
    house.tick()
    assert generation.link is second


def test_two_processes_never_try_suspects_at_once(tmp_path):
    ours, theirs = IsolationLock(tmp_path), IsolationLock(tmp_path)
    assert ours.acquire() and ours.acquire()
    assert not theirs.acquire() and theirs.is_elsewhere() and not ours.is_elsewhere()
    ours.release()
    assert theirs.acquire()
    theirs.release()
    assert not IsolationLock(tmp_path / "gone").acquire()
    assert not IsolationLock(tmp_path / "gone").is_elsewhere()
