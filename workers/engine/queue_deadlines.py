"""QueueDeadlines: until when each request that has not started yet may wait for its turn."""

import heapq

from workers.engine.sequence_group import SequenceGroup

# How many requests that have started or ended may be kept until their deadlines pass.
_SPARE = 64


class QueueDeadlines:
    """A heap of (deadline, arrival, group)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, SequenceGroup]] = []

    def add(self, group: SequenceGroup, now: float, num_unfinished: int) -> None:
        """Let a request wait for its queue_timeout; `num_unfinished` requests there are in all."""
        deadline = now + group.request.generate.queue_timeout
        heapq.heappush(self._heap, (deadline, group.request.arrival, group))
        if len(self._heap) > 2 * num_unfinished + _SPARE:
            self._heap = [entry for entry in self._heap if _is_waiting(entry[2])]
            heapq.heapify(self._heap)

    def take_expired(self, now: float) -> list[SequenceGroup]:
        """Return the requests that have waited too long without ever running, each once."""
        expired = []
        while self._heap:
            deadline, _, group = self._heap[0]
            is_waiting = _is_waiting(group)
            if is_waiting and deadline > now:
                break
            heapq.heappop(self._heap)
            if is_waiting:
                expired.append(group)
        return expired


def _is_waiting(group: SequenceGroup) -> bool:
    return not (group.has_started or group.is_finished)
