import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenapi.text.stop_matcher import StopAutomaton, StopMatcher


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    matcher = StopMatcher(StopAutomaton(stops))
    out = [matcher.push(piece) for piece in pieces]
    return [*out, matcher.finish()], matcher.matched


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """The rule in its plainest form: the first end of any stop; there, the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@pytest.mark.parametrize(
    ("stops", "pieces", "out", "matched"),
    [
        ([], ["ab", "c"], ["ab", "c", ""], None),
        (["c"], ["ab", "cd"], ["ab", "", ""], "c"),
        (["cd"], ["abc", "de"], ["ab", "", ""], "cd"),
        (["cd"], ["abc", "x"], ["ab", "cx", ""], None),
        (["cd"], ["abc"], ["ab", "c"], None),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", "", ""], "aab"),
        (["abcd", "bc"], ["abcd"], ["a", ""], "bc"),
        (["abc", "bc"], ["xabc"], ["x", ""], "abc"),
        (["停"], ["请停", "下"], ["请", "", ""], "停"),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", "", ""], "\n\n"),
        (["stop"], ["stop", "stop"], ["", "", ""], "stop"),
    ],
)
def test_text_is_held_only_while_it_may_become_a_stop(
    stops: list[str], pieces: list[str], out: list[str], matched: str | None
) -> None:
    assert run(stops, pieces) == (out, matched)


@given(
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
    st.lists(st.text("abc", max_size=6), max_size=8),
)
def test_the_result_depends_on_the_text_alone(stops: list[str], pieces: list[str]) -> None:
    out, matched = run(stops, pieces)
    assert ("".join(out), matched) == expected(stops, "".join(pieces))


@given(
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4),
    st.text("abc", max_size=20),
)
def test_held_text_is_the_longest_prefix_of_a_stop(stops: list[str], text: str) -> None:
    matcher = StopMatcher(StopAutomaton(stops))
    emitted = matcher.push(text)
    if matcher.matched is None:
        held = text[len(emitted) :]
        could_stop = [
            text[i:] for i in range(len(text)) if any(s.startswith(text[i:]) for s in stops)
        ]
        assert held == max(could_stop, key=len, default="")


def test_time_is_linear_for_stops_that_nearly_match() -> None:
    stops = ["a" * 255 + chr(0x4E00 + i) for i in range(16)]

    def seconds(length: int) -> float:
        matcher = StopMatcher(StopAutomaton(stops))
        started = time.process_time()
        for _ in range(length):
            matcher.push("a" * 300 + "b")
        return time.process_time() - started

    small = min(seconds(100) for _ in range(3))
    assert min(seconds(200) for _ in range(3)) < 3 * small + 0.01


@given(
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    st.lists(st.text("abc", max_size=5), max_size=6),
)
def test_a_text_may_end_with_its_stop(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(StopAutomaton(stops), includes_stop=True)
    out = "".join([*map(matcher.push, pieces), matcher.finish()])
    text, stop = expected(stops, "".join(pieces))
    assert (out, matcher.matched) == (text + (stop or ""), stop)
