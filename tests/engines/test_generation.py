"""Where a request is, from the first question to its end, on links whose other end is a test."""

import gevent
import pytest

from qwenapi.engines.generation import Generation, GenerationState
from tests.engines.test_replay import House, deliver, give, start
from workers.errors import ProtocolError
from workers.wire.protocol import (
    Accepted,
    Failed,
    Finished,
    Generate,
    PromptLogprobs,
    SamplingParams,
    StepUpdate,
    TokenLogprob,
)


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def asked(house, link):
    params = SamplingParams(max_tokens=9)
    request = Generate(wid=1 << 32, request_id="r", prompt_ids=(1,), params=params)
    generation = Generation(request, house.mailbox)
    link.submit(generation)
    return generation


def test_the_usual_way(house):
    link = house.engine()
    generation = asked(house, link)
    seen = [generation.state]
    deliver(link, Accepted(generation.wid))
    seen.append(generation.state)
    start(link, generation)
    seen.append(generation.state)
    give(link, generation, finish_reason="length")
    deliver(link, StepUpdate(finished=[Finished(generation.wid, 1, 1)]))
    seen.append(generation.state)
    assert [state.name for state in seen] == ["ASKED", "QUEUED", "RUNNING", "ENDED"]


@pytest.mark.parametrize(("has_started", "again"), [(False, "QUEUED"), (True, "RESUMING")])
def test_a_lost_one_waits_and_is_asked_again(house, has_started, again):
    generation = house.ask(house.engine(), 1, is_started=has_started)
    house.lose(house.links[0])
    assert generation.state is GenerationState.LOST and generation.is_waiting
    gevent.sleep(0.02)
    link = house.engine()
    house.tick()
    assert generation.state.name == again
    assert generation.is_waiting is has_started, "in a queue it is as it was before"
    start(link, generation)
    waited = generation.seconds_waited
    gevent.sleep(0.02)
    assert waited >= 0.02 and generation.seconds_waited == waited


def test_nothing_comes_after_the_end(house):
    generation = house.ask(house.engine(), 1)
    generation.fail("server_shutdown")
    house.lose(house.links[0])
    gevent.sleep(0)
    assert generation.is_over and not house.replays.waiting and house.replays.num_replays == 0
    assert house.events(generation)[-1] == Failed(generation.wid, "server_shutdown")


def scores(generation, position, *values):
    logprobs = tuple(TokenLogprob(9, value) for value in values)
    return StepUpdate(prompt_logprobs=[PromptLogprobs(generation.wid, position, logprobs)])


def test_how_likely_a_prompt_was_is_kept_once_though_a_replay_says_it_again(house):
    link = house.engine()
    generation = house.ask(link, 1, is_started=False)
    deliver(link, scores(generation, 1, -1.0, -2.0))
    house.lose(link)
    link = house.engine()
    house.tick()
    deliver(link, scores(generation, 1, -1.0))
    deliver(link, scores(generation, 2, -2.0, -3.0))
    assert [score.logprob for score in generation.prompt_logprobs] == [-1.0, -2.0, -3.0]


def test_what_is_said_of_a_prompt_has_no_gaps(house):
    generation = house.ask(house.engine(), 1, is_started=False)
    generation.score(PromptLogprobs(generation.wid, 1, (TokenLogprob(9, -1.0),)))
    with pytest.raises(ProtocolError, match="prompt token 3 after 2"):
        generation.score(PromptLogprobs(generation.wid, 3, (TokenLogprob(9, -3.0),)))
