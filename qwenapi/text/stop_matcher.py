"""Stop strings in a stream: nothing from a stop on is emitted, nothing else held without need.

An Aho-Corasick automaton reads each character once; its depth is exactly the longest suffix that
may still become a stop, and only that is held back. The stop that completes first wins; of several
that complete at the same character the longest. So the result depends on the text alone, not on how
it was cut into pieces.
"""

from collections import deque
from collections.abc import Sequence


class StopAutomaton:
    """A trie of the stops (0 its root) whose nodes know their longest proper suffix in it.

    Never changes once made, so all choices of a request share one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.is_empty = not stops
        self._children: list[dict[str, int]] = [{}]
        self._suffix = [0]
        self.depth = [0]
        self.match_length = [0]  # of the longest stop that ends at the node, 0 for none
        for stop in stops:
            self._add(stop)
        self._link()

    def step(self, state: int, char: str) -> int:
        """Return the node of the longest suffix after one more character."""
        while state and char not in self._children[state]:
            state = self._suffix[state]
        return self._children[state].get(char, 0)

    def _add(self, stop: str) -> None:
        node = 0
        for depth, char in enumerate(stop, 1):
            if char not in self._children[node]:
                self._children[node][char] = self._append_node(depth)
            node = self._children[node][char]
        self.match_length[node] = len(stop)

    def _append_node(self, depth: int) -> int:
        self._children.append({})
        self._suffix.append(0)
        self.depth.append(depth)
        self.match_length.append(0)
        return len(self.depth) - 1

    def _link(self) -> None:
        """Set the suffixes breadth first: a node's suffix is shallower than the node."""
        queue = deque(self._children[0].values())
        while queue:
            node = queue.popleft()
            for char, child in self._children[node].items():
                suffix = self._suffix[child] = self.step(self._suffix[node], char)
                self.match_length[child] = self.match_length[child] or self.match_length[suffix]
                queue.append(child)


class StopMatcher:
    """Filters one choice's text. `matched` is the stop that was found, or None.

    With `includes_stop`, the text ends with the stop and not before it.
    """

    def __init__(self, automaton: StopAutomaton, *, includes_stop: bool = False) -> None:
        self._automaton = automaton
        self._includes_stop = includes_stop
        self._state = 0
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Return what may be emitted now that `text` has arrived; nothing after a stop."""
        if self.matched is not None:
            return ""
        if self._automaton.is_empty:
            return text
        buffer = self._held + text
        end = self._find(text, len(self._held))
        self._held = ""
        if end is not None:
            start = end - self._automaton.match_length[self._state]
            self.matched = buffer[start:end]
            return buffer[:end] if self._includes_stop else buffer[:start]
        num_free = len(buffer) - self._automaton.depth[self._state]
        self._held = buffer[num_free:]
        return buffer[:num_free]

    def finish(self) -> str:
        """Return the text still held: the end has come, and no stop."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str, offset: int) -> int | None:
        """Advance over `text`; return the end of the first stop, counted from `offset`, or None."""
        step, match_length, state = self._automaton.step, self._automaton.match_length, self._state
        for end, char in enumerate(text, offset + 1):
            state = step(state, char)
            if match_length[state]:
                self._state = state
                return end
        self._state = state
        return None
