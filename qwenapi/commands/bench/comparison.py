"""Comparison: two servers under the same load in turns, and the ratio of what they gave.

A round measures both, one right after the other; the next round in the other order: A B, B A, A B.
What drifts on the machine then falls on both. With x as the logarithm of A's figure over B's in
each of n rounds, their mean m and sample standard deviation s:

    ratio       exp(m)
    interval    exp(m - t * s / sqrt(n)) to exp(m + t * s / sqrt(n))

t is Student's for 95 % at n - 1 degrees of freedom. A figure of one server is its geometric mean
over the rounds, so that A's over B's is the ratio. No prompt is sent twice, to either server, so
that prefix caches give nothing; not even where both addresses are the same server's. Each has a
second to itself before it is measured: OpenMP's threads spin on after a server's last step, by
default for 0.2 s in Intel's library.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qwenapi.commands.bench.load import BenchResult, Load, run
from qwenapi.commands.bench.server_facts import ServerError

_PAUSE_SECONDS = 1.0
# Student's t for 95 %, two-sided, at 1, 2, … degrees of freedom. More than these take the last,
# and so a little too wide an interval.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """A figure that servers are compared by."""

    name: str
    of: Callable[[BenchResult], float]
    more_is_better: bool = False


MEASURES = (
    Measure("tokens/s", lambda result: result.tokens_per_second, more_is_better=True),
    Measure("TTFT p50, ms", lambda result: result.ttft_ms["p50"]),
    Measure("gap p95, ms", lambda result: result.gap_ms["p95"]),
)


@dataclass(frozen=True)
class Ratio:
    """A's figure over B's, and the ends of its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> "Ratio":
        """Return the ratio of paired figures, all of them greater than 0; two pairs at least."""
        logs = [math.log(a / b) for a, b in pairs]
        mean, spread = statistics.mean(logs), statistics.stdev(logs)
        student = STUDENT[min(len(logs) - 1, len(STUDENT)) - 1]
        reach = student * spread / math.sqrt(len(logs))
        return cls(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))


@dataclass(frozen=True)
class Round:
    """What both gave, which was first, and the machine's load average just before."""

    a: BenchResult
    b: BenchResult
    is_a_first: bool
    load_average: float


@dataclass(frozen=True)
class Comparison:
    """All rounds of one number of streams."""

    concurrency: int
    rounds: tuple[Round, ...]

    def pairs(self, of: Callable[[BenchResult], float]) -> list[tuple[float, float]]:
        return [(of(each.a), of(each.b)) for each in self.rounds]

    def means(self, of: Callable[[BenchResult], float]) -> tuple[float, float]:
        """Return A's and B's geometric mean; 0 where a round gave 0, as of gaps between none."""
        a, b = zip(*self.pairs(of), strict=True)
        return _mean(a), _mean(b)

    def ratio(self, of: Callable[[BenchResult], float]) -> Ratio | None:
        """Return A's over B's; None where a round gave 0, which has no ratio."""
        pairs = self.pairs(of)
        return Ratio.of(pairs) if all(a > 0 and b > 0 for a, b in pairs) else None


def compare(
    a: Load, b: Load, concurrency: int, num_requests: int, num_rounds: int, seeds: Iterator[int]
) -> Iterator[Round]:
    """Yield each round as it ends; `seeds` yields where those of the next measurement begin.

    Raise ServerError at the first request that fails: the rest would compare nothing.
    """

    def measure(load: Load) -> BenchResult:
        time.sleep(_PAUSE_SECONDS)
        result = run(load, concurrency, num_requests, next(seeds))
        refuse_failures(load, result)
        return result

    for number in range(num_rounds):
        is_a_first = number % 2 == 0
        load_average = os.getloadavg()[0]
        if is_a_first:
            of_a, of_b = measure(a), measure(b)
        else:
            of_b, of_a = measure(b), measure(a)
        yield Round(of_a, of_b, is_a_first, load_average)


def refuse_failures(load: Load, result: BenchResult) -> None:
    """Raise ServerError if a request failed, with the server's address and why."""
    if result.num_failed:
        raise ServerError(
            f"{load.url} failed {result.num_failed} of {result.num_requests} requests at"
            f" {streams(result.concurrency)}: {'; '.join(result.errors)}"
        )


def streams(count: int) -> str:
    return f"{count} stream" + "s" * (count != 1)


def _mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values) if all(value > 0 for value in values) else 0.0
