"""StubEngine: an engine without torch, for tests, work on the web page and fault drills.

It answers with the ids of the prompt itself, over and over, at one token per sequence and step; a
choice starts at the prompt's token number `seed + choice`. Its text is therefore valid wherever the
prompt's was. A pooling gets numbers that follow from the prompt. A request can be poison: see
Poison.
"""

import enum
import itertools
import math
import os
import random
import struct
import time
from collections import Counter
from dataclasses import dataclass

from workers.checkpoint.checkpoint import Checkpoint
from workers.config import EngineConfig
from workers.engine_core import Key, StepOutput
from workers.errors import ExitCode
from workers.fairness import TenantCounters
from workers.grammar.compiled_grammar import CompiledGrammar
from workers.wire.engine_stats import EngineStats
from workers.wire.protocol import (
    Chunk,
    Failed,
    Finished,
    FinishReason,
    Generate,
    ModelCard,
    Pooling,
    PromptLogprobs,
    Started,
    TokenLogprob,
)

NUM_BLOCKS = 65_536
BLOCK_SIZE = 32
# The bias of this token makes a request poison; else the stub has no use for biases.
POISON_TOKEN = 0
POISONED_POSITION = 5


class Poison(enum.IntEnum):
    """What a request does to the engine whenever its token number POISONED_POSITION is due."""

    EXIT = -91
    EXIT_IN_COMPANY = -92  # only beside other requests
    HANG = -93  # without ever letting another thread run


@dataclass
class _Running:
    """A request, the number of tokens each choice has, and the choices that go on."""

    request: Generate
    script: list[int]
    num_tokens: dict[int, int]
    open: set[int]


class StubEngine:
    """Implements workers.engine_core.EngineCore; `stub_step_seconds` is the length of a step."""

    def __init__(self, config: EngineConfig) -> None:
        self._step_seconds = config.stub_step_seconds
        self.card = _card(config)
        self._waiting: dict[Key, tuple[Generate, float]] = {}
        self._running: dict[Key, _Running] = {}
        self._tenants = TenantCounters()
        self._next_step = 0.0
        self._generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, key: Key, request: Generate, grammar: CompiledGrammar | None = None) -> None:
        """Queue a request; its grammar is not kept to."""
        self._waiting[key] = (request, time.monotonic())
        self._tenants.enter(request.tenant)

    def abort(self, key: Key, choices: tuple[int, ...] = ()) -> bool:
        if running := self._running.get(key):
            running.open -= set(choices or running.open)
            if not running.open:
                self._leave(key)
        elif not choices and key in self._waiting:
            self._leave(key)
        return key not in self._running and key not in self._waiting

    def step(self) -> StepOutput:
        self._wait_for_next_step()
        output = StepOutput()
        self._admit(output)
        for key in list(self._running):
            self._advance(key, output)
        return output

    def check_ranks(self) -> None:
        """Do nothing: it is one process."""

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            free_blocks=NUM_BLOCKS - len(self._running),
            total_blocks=NUM_BLOCKS,
            generated_tokens=self._generated_tokens,
        )

    def check_integrity(self) -> None:
        assert all(running.open for running in self._running.values()), (
            "a request runs without an open choice"
        )
        assert not self._running.keys() & self._waiting.keys(), "a request both waits and runs"

    def _wait_for_next_step(self) -> None:
        now = time.monotonic()
        if self._next_step > now:
            time.sleep(self._next_step - now)
        self._next_step = max(self._next_step, now) + self._step_seconds

    def _admit(self, output: StepOutput) -> None:
        in_group = Counter(running.request.group for running in self._running.values())
        now = time.monotonic()
        waiting = self._waiting.items()
        resumed = [item for item in waiting if any(item[1][0].resume)]
        new = [item for item in waiting if not any(item[1][0].resume)]
        in_turn = self._tenants.in_turn(new, lambda item: item[1][0])
        for key, (request, arrival) in itertools.chain(resumed, in_turn):
            if len(self._running) < self.card.max_num_seqs and (
                not request.max_running or in_group[request.group] < request.max_running
            ):
                del self._waiting[key]
                in_group[request.group] += 1
                self._tenants.charge(request.tenant, read=len(request.prompt_ids))
                self._running[key] = self._start(request)
                output.started.append((key, Started(request.wid, 0)))
                if scores := _prompt_logprobs(request):
                    output.prompt_logprobs.append((key, scores))
            elif now - arrival > request.queue_timeout:
                self._leave(key)
                output.failed.append((key, Failed(request.wid, "queue_timeout")))

    def _leave(self, key: Key) -> None:
        running = self._running.pop(key, None)
        request = running.request if running else self._waiting.pop(key)[0]
        self._tenants.leave(request.tenant)

    def _start(self, request: Generate) -> _Running:
        script = [i for i in request.prompt_ids if i not in self.card.eos_token_ids] or [0]
        resume = request.resume or ((),) * len(request.choices)
        num_tokens = {c: len(ids) for c, ids in zip(request.choices, resume, strict=True)}
        return _Running(request, script, num_tokens, set(request.choices))

    def _advance(self, key: Key, output: StepOutput) -> None:
        running = self._running[key]
        request, params, script = running.request, running.request.params, running.script
        if request.pooling is not None:
            self._leave(key)
            pooled = _pooled(request.prompt_ids, request.pooling, self.card.output_size)
            finished = Finished(request.wid, len(request.prompt_ids), 0, pooled)
            output.finished.append((key, finished))
            return
        limit = min(params.max_tokens, self.card.max_model_len - len(request.prompt_ids))
        for choice in sorted(running.open):
            position = running.num_tokens[choice]
            if position == POISONED_POSITION and POISON_TOKEN in params.logit_bias:
                self._take_poison(params.logit_bias[POISON_TOKEN])
            token = script[(params.seed + choice + position) % len(script)]
            is_stop = token in params.stop_token_ids and position >= params.min_tokens
            reason: FinishReason | None = (
                "stop" if is_stop else "length" if position + 1 >= limit else None
            )
            stop_token_id = token if is_stop else None
            logprobs = _logprobs(token, position, params.logprobs)
            chunk = Chunk(request.wid, choice, position, (token,), reason, stop_token_id, logprobs)
            output.chunks.append((key, chunk))
            running.num_tokens[choice] = position + 1
            self._generated_tokens += 1
            self._tenants.charge(request.tenant, given=1)
            if reason is not None:
                running.open.discard(choice)
        if not running.open:
            self._leave(key)
            total = sum(running.num_tokens.values())
            output.finished.append((key, Finished(request.wid, len(request.prompt_ids), total)))

    def _take_poison(self, poison: float) -> None:
        if poison == Poison.EXIT or (poison == Poison.EXIT_IN_COMPANY and len(self._running) > 1):
            os._exit(ExitCode.INTERNAL)
        if poison == Poison.HANG:
            sum(range(1 << 62))  # one call into C


def _logprobs(token: int, position: int, num_top: int | None) -> tuple[TokenLogprob, ...]:
    """Return a log-probability that tells positions apart, and as many alternatives as asked."""
    if num_top is None:
        return ()
    value = -1.0 / (position + 2)
    return (TokenLogprob(token, value, (token,) * num_top, (value,) * num_top),)


def _prompt_logprobs(request: Generate) -> PromptLogprobs | None:
    """Return of the prompt's tokens what `_logprobs` says of the answer's."""
    num_top = request.params.prompt_logprobs
    tokens = enumerate(request.prompt_ids[1:])
    found = [logprob for i, token in tokens for logprob in _logprobs(token, i, num_top)]
    return PromptLogprobs(request.wid, 1, tuple(found)) if found else None


def _pooled(prompt_ids: tuple[int, ...], pooling: Pooling, size: int) -> bytes:
    """Return numbers that follow from the prompt alone: a vector of length 1, or logits, of which
    the last token asked for has a larger one, the longer the prompt.
    """
    if pooling.token_ids:
        logits = [float(len(prompt_ids) * i) / 64 for i in range(len(pooling.token_ids))]
        return struct.pack(f"<{len(logits)}f", *logits)
    count = pooling.dimensions or size
    draws = random.Random(repr(prompt_ids))
    vector = [draws.gauss(0, 1) for _ in range(size)][:count]
    length = math.hypot(*vector)
    return struct.pack(f"<{count}f", *(number / length for number in vector))


def _card(config: EngineConfig) -> ModelCard:
    checkpoint = Checkpoint.of(config)
    vision = checkpoint.vision_config
    return ModelCard(
        model_dir=str(checkpoint.directory),
        model_hash="stub-" + checkpoint.tokenizer_sha256,
        tokenizer_sha256=checkpoint.tokenizer_sha256,
        architecture="stub",
        max_model_len=config.max_model_len or checkpoint.config.context_length,
        vocab_size=checkpoint.config.vocab_size,
        eos_token_ids=checkpoint.eos_token_ids,
        generation_config=checkpoint.sampling_defaults,
        dtype="none",
        device="stub",
        block_size=BLOCK_SIZE,
        num_blocks=NUM_BLOCKS,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        task=checkpoint.task,
        output_size=checkpoint.output_size,
        image_side=vision.side if vision else 0,
        image_token_id=vision.image_token_id if vision else -1,
    )
