"""Admission: accept or reject a request before a token of it is computed, by counts alone.

Decided in the socket thread, in microseconds: the engine loop publishes how far it is. A group's
requests are limited together (running + waiting); the engine's own limits hold for all.
"""

import itertools
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

from workers.engine_core import Key
from workers.wire.engine_stats import EngineStats
from workers.wire.images import are_images_right, image_bytes
from workers.wire.protocol import (
    MAX_CHOICES,
    Generate,
    ModelCard,
    Pooling,
    Rejected,
    RejectReason,
)

# Before this many requests of one busy period have finished, a prediction says nothing.
MIN_FINISHED = 10
MAX_RETRY_AFTER = 120
# Pixels of pictures that may be in the system; a request alone may have more.
MAX_IMAGE_BYTES = 1 << 30
# Prompt tokens that may be in the system, in cache sizes: one running, two waiting.
MAX_CACHES_OF_PROMPTS = 3


@dataclass(frozen=True)
class _Admitted:
    group: str
    num_prompt_tokens: int
    num_image_bytes: int


class Admission:
    """Counts what is in the system and says yes or no; every admitted key must be released once."""

    def __init__(self, card: ModelCard, max_waiting: int) -> None:
        self._card = card
        self._max_waiting = max_waiting
        self._max_prompt_tokens = MAX_CACHES_OF_PROMPTS * card.num_blocks * card.block_size
        self._lock = threading.Lock()
        self._admitted: dict[Key, _Admitted] = {}
        self._in_group: Counter[str] = Counter()
        self._num_prompt_tokens = self._num_image_bytes = 0
        self._stats = EngineStats()
        self._finish_times: deque[float] = deque(maxlen=64)
        self.is_draining = False

    def decide(self, key: Key, request: Generate) -> Rejected | None:
        """Admit the request and return None, or return why not."""
        with self._lock:
            rejected = self._invalid(key, request)
            # A replay was admitted once, and its caller has been told so.
            if rejected is None and request.epoch == 0:
                rejected = self._full(request) or self._too_slow(request)
            if rejected is None:
                num_tokens, num_bytes = len(request.prompt_ids), image_bytes(request)
                self._admitted[key] = _Admitted(request.group, num_tokens, num_bytes)
                self._in_group[request.group] += 1
                self._num_prompt_tokens += num_tokens
                self._num_image_bytes += num_bytes
            return rejected

    def release(self, key: Key, *, finished: bool = False) -> None:
        """Take a request out of the counts; unknown keys are ignored."""
        with self._lock:
            admitted = self._admitted.pop(key, None)
            if admitted is None:
                return
            self._in_group[admitted.group] -= 1
            if not self._in_group[admitted.group]:
                del self._in_group[admitted.group]
            self._num_prompt_tokens -= admitted.num_prompt_tokens
            self._num_image_bytes -= admitted.num_image_bytes
            if finished:
                self._finish_times.append(time.monotonic())

    def publish(self, stats: EngineStats) -> None:
        """Take the loop's numbers; an empty queue ends a busy period and with it the prediction."""
        with self._lock:
            self._stats = stats
            if not stats.waiting:
                self._finish_times.clear()

    @property
    def num_admitted(self) -> int:
        return len(self._admitted)

    def _invalid(self, key: Key, request: Generate) -> Rejected | None:
        if self.is_draining:
            return self._rejected(request, "draining")
        prompt, card = request.prompt_ids, self._card
        if len(prompt) + (request.pooling is None) > card.max_model_len:
            return self._rejected(request, "too_long")
        is_valid = (
            key not in self._admitted
            and prompt
            and min(prompt) >= 0
            and max(prompt) < card.vocab_size
            and 1 <= len(request.choices) <= min(MAX_CHOICES, card.max_num_seqs)
            and request.params.max_tokens >= 1
            and self._is_for_task(request.pooling)
            and self._is_resumable(request)
            and self._is_thought_known(request)
            and self._are_bounds_known(request)
            and are_images_right(request, card)
        )
        return None if is_valid else self._rejected(request, "invalid")

    def _is_resumable(self, request: Generate) -> bool:
        """Return whether a replay's ids are the model's, and of as many choices as it asks for."""
        if not request.resume:
            return True
        ids = list(itertools.chain.from_iterable(request.resume))
        return len(request.resume) == len(request.choices) and (
            not ids or (min(ids) >= 0 and max(ids) < self._card.vocab_size)
        )

    def _is_for_task(self, pooling: Pooling | None) -> bool:
        """Return whether what is asked of the prompt is what the model gives."""
        task, size = self._card.task, self._card.output_size
        if pooling is None:
            return task == "generate"
        if task == "rerank":
            return bool(pooling.token_ids) and all(0 <= i < size for i in pooling.token_ids)
        return task == "embed" and not pooling.token_ids and 0 <= pooling.dimensions <= size

    def _is_thought_known(self, request: Generate) -> bool:
        """Return whether the tokens around a thought are the model's."""
        grammar = request.grammar
        if grammar is None:
            return True
        start = [] if grammar.thought_start_id is None else [grammar.thought_start_id]
        ids = [*start, *grammar.thought_end_ids]
        return all(0 <= token_id < self._card.vocab_size for token_id in ids)

    def _are_bounds_known(self, request: Generate) -> bool:
        """Return whether the tokens allowed and forbidden are the model's."""
        params = request.params
        ids = [*params.allowed_token_ids, *itertools.chain.from_iterable(params.bad_words)]
        return all(params.bad_words) and all(0 <= i < self._card.vocab_size for i in ids)

    def _full(self, request: Generate) -> Rejected | None:
        max_running = request.max_running or self._card.max_num_seqs
        if request.max_waiting or request.max_running:
            waiting = self._in_group[request.group] - max_running
            if waiting >= request.max_waiting:
                return self._rejected(request, "queue_full", waiting, request.max_waiting)
        waiting = len(self._admitted) - self._card.max_num_seqs
        if waiting >= self._max_waiting:
            return self._rejected(request, "queue_full", waiting, self._max_waiting)
        num_tokens = self._num_prompt_tokens + len(request.prompt_ids)
        num_bytes = self._num_image_bytes + image_bytes(request)
        if self._admitted and (num_tokens > self._max_prompt_tokens or num_bytes > MAX_IMAGE_BYTES):
            return self._rejected(request, "overloaded", waiting, self._max_waiting)
        return None

    def _too_slow(self, request: Generate) -> Rejected | None:
        wait = self._predicted_wait()
        if wait is not None and wait > request.queue_timeout:
            return self._rejected(request, "overloaded", self._stats.waiting, self._max_waiting)
        return None

    def _predicted_wait(self) -> float | None:
        """Return the seconds a new request would wait, as the last ones have finished."""
        if len(self._finish_times) < MIN_FINISHED:
            return None
        seconds = max(self._finish_times[-1] - self._finish_times[0], 1e-6)
        return self._stats.waiting * seconds / (len(self._finish_times) - 1)

    def _rejected(
        self, request: Generate, reason: RejectReason, size: int = 0, limit: int = 0
    ) -> Rejected:
        retry_after = min(MAX_RETRY_AFTER, max(1, round(self._predicted_wait() or 1)))
        return Rejected(
            wid=request.wid,
            reason=reason,
            queue_size=max(size, 0),
            max_queue_size=limit,
            retry_after=retry_after,
        )
