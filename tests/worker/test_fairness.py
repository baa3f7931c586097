"""Virtual token counters: who is served next."""

from dataclasses import dataclass

from workers.fairness import TenantCounters


@dataclass(frozen=True)
class Ask:
    tenant: str
    priority: int = 0
    size: int = 10


def served(counters, waiting, rounds):
    """Admit one after the other, charging each on the way, and return whose they were."""
    order = []
    for ask in counters.in_turn(waiting, lambda ask: ask):
        counters.charge(ask.tenant, read=ask.size)
        order.append(ask.tenant)
        if len(order) == rounds:
            break
    return "".join(order)


def counters_of(*asks):
    counters = TenantCounters()
    for ask in asks:
        counters.enter(ask.tenant)
    return counters


def test_a_flood_shares_evenly_with_a_trickle():
    waiting = [Ask("a")] * 20 + [Ask("b")] * 3
    assert served(counters_of(*waiting), waiting, 8) in ("abababaa", "babababa"[:6] + "aa")


def test_shares_are_of_tokens_and_not_of_requests():
    waiting = [Ask("a", size=30)] * 10 + [Ask("b", size=10)] * 30
    order = served(counters_of(*waiting), waiting, 20)
    assert order.count("b") == 3 * order.count("a")


def test_tokens_given_weigh_twice_those_read():
    waiting = [Ask("a"), Ask("b")]
    counters = counters_of(*waiting)
    counters.charge("a", given=4)
    counters.charge("b", read=7)
    assert served(counters, waiting, 2) == "ba"
    counters.charge("b", read=2)
    assert served(counters, waiting, 2) == "ab"


def test_a_priority_goes_before_any_share():
    waiting = [Ask("a", priority=1), Ask("b", priority=1), Ask("a", priority=0)]
    counters = counters_of(*waiting)
    counters.charge("a", given=1000)
    assert served(counters, waiting, 3) == "aba"


def test_absence_saves_nothing_up():
    counters = counters_of(Ask("busy"))
    counters.enter("idle")
    counters.leave("idle")
    counters.charge("busy", given=500)
    counters.enter("idle")
    waiting = [Ask("busy")] * 4 + [Ask("idle")] * 4
    assert served(counters, waiting, 8).count("idle") == 4
    assert served(counters, waiting[:2] + waiting[-2:], 4) in (
        "busyidlebusyidle",
        "idlebusyidlebusy",
    )


def test_leaving_and_coming_back_forgives_nothing():
    counters = counters_of(Ask("a"), Ask("b"))
    counters.charge("a", given=100)
    counters.leave("a")
    counters.enter("a")
    assert served(counters, [Ask("a"), Ask("b")], 1) == "b"


def test_when_all_have_left_nothing_is_remembered():
    counters = counters_of(Ask("a"))
    counters.charge("a", given=100)
    counters.leave("a")
    counters.enter("b")
    counters.enter("a")
    assert served(counters, [Ask("a"), Ask("b")], 1) == "a"
