from hypothesis import given
from hypothesis import strategies as st

from qwenapi.conversations import PastTurn, fit


def turn(number_of_chars):
    return PastTurn("x" * number_of_chars, "", "stop", 0.0)


def test_a_short_history_is_counted_once():
    counted = []

    def count(history):
        counted.append(len(history))
        return 3 * len(history)

    history = [turn(5) for _ in range(10)]
    assert fit(history, count, 100) is history
    assert counted == [10]


def test_a_long_history_is_never_counted_whole():
    counted = []

    def count(history):
        counted.append(len(history))
        return sum(len(past.user) for past in history)

    history = [turn(10) for _ in range(1000)]
    assert fit(history, count, 100) == history[-10:]
    assert max(counted) <= 40
    assert len(counted) < 10


def test_with_no_room_for_any_turn_none_is_left():
    assert not fit([turn(5)], lambda history: 50, 10)
    assert not fit([], lambda history: 50, 10)


@given(
    st.lists(st.integers(0, 50), max_size=40),
    st.integers(0, 500),
    st.sampled_from([0.2, 1, 3]),
    st.integers(0, 20),
)
def test_the_longest_run_of_newest_turns_that_fits_is_kept(sizes, room, density, overhead):
    history = [turn(size) for size in sizes]

    def count(turns):
        return overhead + sum(1 + int(len(past.user) * density) for past in turns)

    kept = fit(history, count, room)
    wanted = next(
        (history[start:] for start in range(len(history)) if count(history[start:]) <= room), []
    )
    assert len(kept) == len(wanted)
    assert not kept or kept == wanted
