"""StepTimes: how long an engine's next step may take, judged by the steps it has done lately.

Knows durations, and of each request whether its prompt is still to be computed: such a step can be
a hundred times as long as one that only decodes, so it is judged by prompts at least as long. One
slow step is forgotten after a few dozen others. Refuses to know engines and clocks.
"""

import math
from collections import deque
from dataclasses import dataclass

from workers.engine_core import Key, StepOutput
from workers.wire.protocol import Generate

# A step may take so many times as long as the slowest of those it is judged by, and no less than
# MIN_SECONDS.
FACTOR = 20
MIN_SECONDS = 10.0
NUM_RECENT = 32
# Fewer steps than these tell nothing.
NUM_FEW = 8
# Of so many tokens of pictures each, one more patience.
_PATIENCE_TOKENS = 1000


@dataclass
class _Prompt:
    """Tokens to compute before the first of an answer, and the choices that have none yet.

    `num_pictured` of them are of pictures, which something else than the layers looks at: how long
    that takes no other prompt tells. `slowest` is the slowest step since an engine began with it;
    None: it has not, or is not known.
    """

    num_tokens: float
    waiting: set[int]
    num_pictured: int = 0
    slowest: float | None = None


class StepTimes:
    """The recent steps of one engine, and what its next one may have to compute."""

    def __init__(self, patience: float, max_num_batched_tokens: int) -> None:
        """`patience`: the least limit of a step nothing comparable is known of."""
        self._patience = patience
        self._budget = max_num_batched_tokens
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)
        self._recent_prompts: deque[tuple[float, float]] = deque(maxlen=NUM_RECENT)
        self._open: dict[Key, set[int]] = {}
        self._prompts: dict[Key, _Prompt] = {}
        self._num_preemptions = 0

    @property
    def limit(self) -> float:
        """Return how many seconds the next step may take."""
        slowest = max(self._recent, default=0.0)
        is_known = len(self._recent) >= NUM_FEW
        if is_known and self._prompts:
            needed = self._num_tokens_needed()
            alike = [seconds for num, seconds in self._recent_prompts if num >= needed]
            is_known, slowest = bool(alike), max(slowest, *alike, 0.0)
        num_pictured = sum(prompt.num_pictured for prompt in self._prompts.values())
        if num_pictured:
            return max(self._patience * (1 + num_pictured / _PATIENCE_TOKENS), FACTOR * slowest)
        return max(MIN_SECONDS if is_known else self._patience, FACTOR * slowest)

    def add(self, key: Key, request: Generate) -> None:
        """Note a request that an engine was given."""
        num_tokens = len(request.prompt_ids) + sum(map(len, request.resume))
        self._open[key] = set(request.choices)
        num_pictured = sum(image.num_tokens for image in request.images)
        self._prompts[key] = _Prompt(num_tokens, set(request.choices), num_pictured)

    def forget(self, key: Key) -> None:
        """Note that a request is over, however it ended."""
        self._open.pop(key, None)
        self._prompts.pop(key, None)

    def note(self, seconds: float, output: StepOutput) -> None:
        """Note a step that is done."""
        self._recent.append(seconds)
        for key, started in output.started:
            if prompt := self._prompts.get(key):
                prompt.num_tokens -= started.cached_tokens
                prompt.slowest = 0.0
        for prompt in self._prompts.values():
            if prompt.slowest is not None:
                prompt.slowest = max(prompt.slowest, seconds)
        for key, finished in output.finished:
            if key in self._prompts and finished.pooled:
                self._has_token(key, 0)
        for key, chunk in output.chunks:
            if key in self._prompts:
                self._has_token(key, chunk.choice)
            if chunk.finish_reason is not None and key in self._open:
                self._open[key].discard(chunk.choice)

    def note_preemptions(self, num_preemptions: int) -> None:
        """Note how many there were since the start; after one any answer may be computed anew, of
        a length that is not known here.
        """
        if num_preemptions != self._num_preemptions:
            self._num_preemptions = num_preemptions
            for key, choices in self._open.items():
                self._prompts.setdefault(key, _Prompt(math.inf, set(choices)))

    def _num_tokens_needed(self) -> float:
        """Return how long a prompt must have been to tell of the next step: it had as much to look
        back at, and filled a step as full as all that wait can fill it together.
        """
        lengths = [prompt.num_tokens for prompt in self._prompts.values()]
        return max(*lengths, min(sum(lengths), self._budget))

    def _has_token(self, key: Key, choice: int) -> None:
        prompt = self._prompts[key]
        if prompt.slowest is not None:
            if not prompt.num_pictured:
                self._recent_prompts.append((prompt.num_tokens, prompt.slowest))
            prompt.slowest = None
        prompt.waiting.discard(choice)
        if not prompt.waiting:
            del self._prompts[key]
