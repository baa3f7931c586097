"""Fair turns among tenants: token counters that say who has been given least.

Virtual token counters, from Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024):
each tenant is charged for what is computed for it, a token given weighing twice a token read, and
whoever comes back from idle is lifted to the least of those present, so that absence saves nothing
up. The most urgent requests come first, whoever asks. Knows neither rows nor blocks.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

READ_WEIGHT, GIVEN_WEIGHT = 1, 2


class Asker(Protocol):
    """What is asked of a request that waits; a lower priority is more urgent."""

    @property
    def tenant(self) -> str: ...

    @property
    def priority(self) -> int: ...


T = TypeVar("T")


class TenantCounters:
    """What each tenant has been given, in weighted tokens, while any tenant is present."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}
        self._num_requests: Counter[str] = Counter()

    def enter(self, tenant: str) -> None:
        """Count a request in."""
        if not self._num_requests[tenant]:
            least = min((self._given[other] for other in +self._num_requests), default=0)
            self._given[tenant] = max(least, self._given.get(tenant, 0))
        self._num_requests[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Count a request out; with the last of all, everybody begins anew."""
        self._num_requests[tenant] -= 1
        if not +self._num_requests:
            self._num_requests.clear()
            self._given.clear()

    def charge(self, tenant: str, *, read: int = 0, given: int = 0) -> None:
        """Charge a tenant for tokens of a prompt, and for tokens of an answer."""
        self._given[tenant] += READ_WEIGHT * read + GIVEN_WEIGHT * given

    def in_turn(self, waiting: Iterable[T], asker: Callable[[T], Asker]) -> Iterator[T]:
        """Yield those that wait, given in order of arrival, each as its turn comes.

        The turns follow charges made between one item and the next.
        """
        lines: dict[tuple[int, str], deque[T]] = {}
        for item in waiting:
            of = asker(item)
            lines.setdefault((of.priority, of.tenant), deque()).append(item)
        while lines:
            line = min(lines, key=lambda line: (line[0], self._given[line[1]]))
            yield lines[line].popleft()
            if not lines[line]:
                del lines[line]
