import msgspec
import pytest

from tests.wire.test_protocol import CARD
from workers.wire.engine_stats import EngineStats
from workers.wire.protocol import Generate, Pooling, SamplingParams, wire_id
from workers.worker.admission import MIN_FINISHED, Admission


def ask(**fields):
    values = {
        "wid": wire_id(1, 0),
        "request_id": "r",
        "prompt_ids": (1, 2, 3),
        "params": SamplingParams(max_tokens=4),
    }
    return Generate(**(values | fields))


def bounded(**fields):
    return SamplingParams(max_tokens=4, **fields)


@pytest.fixture
def admission():
    return Admission(CARD, max_waiting=2)


def test_a_group_of_three_running_and_ten_waiting_takes_exactly_thirteen(admission):
    admission = Admission(CARD, max_waiting=1000)
    answers = [
        admission.decide(i, ask(group="news", max_running=3, max_waiting=10)) for i in range(64)
    ]
    assert [a is None for a in answers] == [True] * 13 + [False] * 51
    assert {(a.reason, a.queue_size, a.max_queue_size) for a in answers[13:]} == {
        ("queue_full", 10, 10)
    }
    assert admission.decide(99, ask(group="other")) is None
    admission.release(0)
    assert admission.decide(100, ask(group="news", max_running=3, max_waiting=10)) is None


def test_the_engines_own_limit_holds_for_all_groups_together(admission):
    # the card's four sequences run, two requests wait
    answers = [admission.decide(i, ask(group=str(i))) for i in range(8)]
    assert [a is None for a in answers] == [True] * 6 + [False] * 2


def test_a_key_is_counted_once_and_released_once(admission):
    assert admission.decide("k", ask()) is None
    assert admission.decide("k", ask()).reason == "invalid"
    admission.release("k")
    admission.release("k")
    assert admission.num_admitted == 0
    assert admission.decide("k", ask()) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt_ids": ()}, "invalid"),
        ({"prompt_ids": (CARD.vocab_size,)}, "invalid"),
        ({"prompt_ids": (-1,)}, "invalid"),
        ({"choices": ()}, "invalid"),
        ({"choices": tuple(range(5))}, "invalid"),
        ({"params": SamplingParams(max_tokens=0)}, "invalid"),
        ({"params": bounded(allowed_token_ids=(1, CARD.vocab_size))}, "invalid"),
        ({"params": bounded(bad_words=((1,), (-1,)))}, "invalid"),
        ({"params": bounded(bad_words=((1,), ()))}, "invalid"),
        ({"resume": ((1,), (2,))}, "invalid"),
        ({"resume": ((CARD.vocab_size,),)}, "invalid"),
        ({"resume": ((-1,),)}, "invalid"),
        ({"prompt_ids": (1,) * CARD.max_model_len}, "too_long"),
    ],
)
def test_what_the_engine_could_not_run_is_refused_by_name(admission, fields, reason):
    assert admission.decide(1, ask(**fields)).reason == reason
    assert admission.num_admitted == 0


@pytest.mark.parametrize(
    ("task", "pooling", "is_taken"),
    [
        ("generate", None, True),
        ("generate", Pooling(), False),
        ("embed", Pooling(), True),
        ("embed", Pooling(dimensions=64), True),
        ("embed", Pooling(dimensions=65), False),
        ("embed", Pooling((1,)), False),
        ("embed", None, False),
        ("rerank", Pooling((1, 63)), True),
        ("rerank", Pooling((1, 64)), False),
        ("rerank", Pooling((-1,)), False),
        ("rerank", Pooling(), False),
    ],
)
def test_a_request_is_for_the_engines_task(task, pooling, is_taken):
    card = msgspec.structs.replace(CARD, task=task, output_size=64)
    answer = Admission(card, max_waiting=2).decide("k", ask(pooling=pooling))
    assert (answer is None) == is_taken and (is_taken or answer.reason == "invalid")


def test_a_prompt_that_is_not_gone_on_with_may_fill_the_context():
    card = msgspec.structs.replace(CARD, task="embed", output_size=64)
    admission, length = Admission(card, max_waiting=9), card.max_model_len
    full, longer = ((1,) * count for count in (length, length + 1))
    assert admission.decide("a", ask(pooling=Pooling(), prompt_ids=full)) is None
    assert admission.decide("b", ask(pooling=Pooling(), prompt_ids=longer)).reason == "too_long"


def test_a_draining_engine_takes_nothing(admission):
    admission.is_draining = True
    assert admission.decide(1, ask()).reason == "draining"


def test_prompts_beyond_three_caches_are_refused_unless_alone(admission):
    card = msgspec.structs.replace(CARD, num_blocks=10)  # 320 tokens
    admission = Admission(card, max_waiting=1000)
    assert admission.decide(0, ask(prompt_ids=(1,) * 900)) is None
    assert admission.decide(1, ask(prompt_ids=(1,) * 100)).reason == "overloaded"
    admission.release(0)
    assert admission.decide(1, ask(prompt_ids=(1,) * 1000)) is None


def test_a_wait_is_predicted_only_from_enough_finished_requests_of_one_busy_period(
    admission, monkeypatch
):
    clock = iter(range(1000))
    monkeypatch.setattr("workers.worker.admission.time.monotonic", lambda: float(next(clock)))
    admission = Admission(CARD, max_waiting=1000)
    admission.publish(EngineStats(waiting=20))
    for i in range(MIN_FINISHED):
        assert admission.decide(i, ask(queue_timeout=10)) is None
        admission.release(i, finished=True)
    # one request a second, twenty before it
    answer = admission.decide("late", ask(queue_timeout=10))
    assert (answer.reason, answer.retry_after) == ("overloaded", 20)
    assert admission.decide("patient", ask(queue_timeout=30)) is None
    admission.publish(EngineStats(waiting=0))
    admission.publish(EngineStats(waiting=20))
    assert admission.decide("new period", ask(queue_timeout=10)) is None


def test_a_replay_is_taken_whatever_the_queue_as_it_was_admitted_once(admission):
    limits = {"group": "news", "max_running": 1, "max_waiting": 1}
    for i in range(6):
        admission.decide(i, ask(group=str(i)))
    assert admission.decide("new", ask(**limits)).reason == "queue_full"
    again = [admission.decide(i, ask(wid=wire_id(i, 1), **limits)) for i in range(10, 20)]
    assert again == [None] * 10
    assert admission.decide("x", ask(wid=wire_id(9, 1), prompt_ids=())).reason == "invalid"
    admission.is_draining = True
    assert admission.decide("y", ask(wid=wire_id(9, 1))).reason == "draining"
