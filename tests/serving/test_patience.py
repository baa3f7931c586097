"""How long a connection's other end is waited for, on a clock of the test's own."""

import pytest

from qwenapi.serving import patience as module
from qwenapi.serving.fast_worker import _origin
from qwenapi.serving.patience import Patience, PatienceLimits

LIMITS = PatienceLimits(idle=75, head=15, silence=30, max_body_bytes=1000)


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_head_has_its_seconds_from_its_first_byte_however_it_trickles(clock):
    patience = Patience(LIMITS)
    clock.now += 14
    assert patience.seconds_left == 1
    patience.hear(1)
    for _ in range(14):
        clock.now += 1
        patience.hear(1)
    assert patience.seconds_left == 1
    clock.now += 2
    assert patience.seconds_left < 0


def test_between_two_requests_a_connection_is_kept_longer(clock):
    patience = Patience(LIMITS)
    patience.await_request()
    clock.now += 74
    assert patience.seconds_left == 1
    patience.hear(9)
    assert patience.seconds_left == 15


def test_a_body_may_not_fall_silent(clock):
    patience = Patience(LIMITS)
    patience.await_body()
    for _ in range(10):
        clock.now += 29
        patience.hear(100)  # too little for the bound on the whole, which is told apart below
        if patience.seconds_left < 0:
            break
    assert clock.now == 1000 + 2 * 29


def test_nor_trickle_for_ever_but_be_slow(clock):
    patience = Patience(PatienceLimits(idle=75, head=15, silence=30, max_body_bytes=1 << 20))
    patience.await_body()
    for _ in range(100):
        clock.now += 10
        patience.hear(11_000)
        assert patience.seconds_left > 20
    for _ in range(100):
        clock.now += 10
        patience.hear(1)
    assert patience.seconds_left < 0


def test_chunks_may_not_add_more_than_so_much(clock):
    patience = Patience(LIMITS)
    patience.await_body()
    patience.hear(1000)
    assert not patience.is_over
    patience.hear(2 * 512 * 1024)
    assert patience.is_over and patience.seconds_left == 0


def test_the_rest_of_a_refused_body_is_read_for_a_moment(clock):
    patience = Patience(LIMITS)
    patience.await_rest()
    patience.hear(3000)
    assert 0 < patience.seconds_left <= 5
    patience.hear(3000)
    assert patience.is_over


def test_what_is_over_stays_over(clock):
    patience = Patience(LIMITS)
    patience.give_up()
    for begin in (patience.await_request, patience.await_body, patience.await_rest):
        begin()
        assert patience.is_over and patience.seconds_left == 0


@pytest.mark.parametrize(
    ("addr", "origin"),
    [
        (("10.0.0.1", 4711), "10.0.0.1"),
        ("", ""),
        (b"", ""),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::", 1, 0, 0), "2001:db8:1:2::/64"),
        (("::ffff:10.0.0.1", 1, 0, 0), "10.0.0.1"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
    ],
)
def test_connections_are_counted_by_whose_they_are(addr, origin):
    assert _origin(addr) == origin
