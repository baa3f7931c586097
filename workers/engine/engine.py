"""Engine: the real engine, a model in memory that advances every request by one step at a time.

Knows how the parts fit together. Refuses to know sockets, admission and processes; a Worker drives
it as an EngineCore. An error inside a step is not caught: what the device and the blocks then hold
is unknown, so the process has to end and be started again.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from workers.checkpoint.speculative_config import MTP, SpeculativeConfig
from workers.config import EngineConfig
from workers.engine.batch import Row
from workers.engine.block_manager import BlockManager
from workers.engine.request import Request
from workers.engine.running_step import RunningStep
from workers.engine.sampler import Sample
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence
from workers.engine.sequence_group import SequenceGroup
from workers.engine.speculation import propose_by_ngrams
from workers.engine.start import start
from workers.engine.state_manager import StateManager
from workers.engine.step_budget import StepBudget
from workers.engine.thread_count import ThreadCount
from workers.engine_core import Key, StepOutput
from workers.grammar.compiled_grammar import CompiledGrammar
from workers.model.loader import Progress
from workers.wire.engine_stats import EngineStats
from workers.wire.images import are_images_right
from workers.wire.protocol import Chunk, Failed, Generate, PromptLogprobs, Started

# By itself a step of a CPU takes as long as its prompts want.
_CPU_STEP_MS = 150

log = logging.getLogger(__name__)


class Engine:
    """An EngineCore over a transformers checkpoint."""

    def __init__(
        self, config: EngineConfig, progress: Progress, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.card, self._runner = start(config, progress)
        card, speculative = self.card, SpeculativeConfig.of(config)
        states = None
        if card.num_state_slots:
            num_for_drafts = speculative.num_state_slots(card.max_num_seqs)
            states = StateManager(
                card.num_state_slots, card.max_num_seqs, card.block_size, num_for_drafts
            )
        self._blocks = BlockManager(
            card.num_blocks, card.block_size, config.enable_prefix_caching, states
        )
        default_ms = _CPU_STEP_MS if card.device == "cpu" else 0
        self._budget = StepBudget(
            card.max_num_batched_tokens, (config.target_step_ms or default_ms) / 1000
        )
        self._scheduler = Scheduler(
            self._blocks,
            card.max_num_seqs,
            card.max_num_batched_tokens,
            speculative.num_tokens,
            self._runner.propose if speculative.method == MTP else propose_by_ngrams,
            self._budget,
        )
        # Neither where results may depend on it, nor where ranks would have to agree.
        is_fixed = config.deterministic or config.tensor_parallel_size > 1 or card.device != "cpu"
        most = 1 if is_fixed else torch.get_num_threads()
        self._threads = ThreadCount(most, torch.set_num_threads)
        self._overlaps = overlaps(config.async_scheduling, card.device)
        # The step whose samples are not known yet, where steps overlap.
        self._under_way: RunningStep | None = None
        self._clock = clock
        self._groups: dict[Key, SequenceGroup] = {}
        self._num_added = 0
        # What `add` found out and the next step reports.
        self._pending = StepOutput()
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0
        self._nonfinite_logits = 0

    @property
    def has_work(self) -> bool:
        pending = self._pending
        is_waiting = bool(pending.chunks or pending.failed)
        return self._scheduler.has_work or self._under_way is not None or is_waiting

    def add(self, key: Key, request: Generate, grammar: CompiledGrammar | None = None) -> None:
        """Queue an admitted request; one that cannot run is answered by the next step."""
        assert key not in self._groups
        if not self._is_valid(request) or (request.grammar is None) != (grammar is None):
            self._pending.failed.append((key, Failed(request.wid, "engine_error")))
            return
        self._num_added += 1
        card = self.card
        ends, length = card.eos_token_ids, card.max_model_len
        group = SequenceGroup(Request(key, request, self._num_added, ends, length, grammar))
        full = [sequence for sequence in group.sequences if sequence.is_finished]
        self._pending.chunks += [(key, _last_chunk(sequence)) for sequence in full]
        if group.is_finished:
            self._pending.started.append((key, Started(request.wid, 0)))
            self._pending.finished.append((key, group.finished()))
            return
        self._groups[key] = group
        self._scheduler.add(group, self._clock())

    def abort(self, key: Key, choices: tuple[int, ...] = ()) -> bool:
        """Forget these choices of a request (none named: all) and free what they hold."""
        group = self._groups.get(key)
        if group is not None:
            self._scheduler.abort(group, choices or group.request.generate.choices)
            if not group.is_finished:
                return False
            del self._groups[key]
        self._pending = _without(self._pending, key)
        return True

    def step(self) -> StepOutput:
        """Compute one batch and return what is known to follow from it.

        Where steps overlap that is the batch before this one: the device computes on while its
        tokens are read, checked and sent.
        """
        self._threads.adapt()
        output, self._pending = self._pending, StepOutput()
        previous, self._under_way = self._under_way, None
        if previous is not None and self._scheduler.speculates:
            self._take(previous, output)  # drafts continue what is known
            previous = None
        batch = self._scheduler.schedule()
        for group in self._scheduler.expire(self._clock()):
            request = group.request
            del self._groups[request.key]
            output.failed.append((request.key, Failed(request.generate.wid, "queue_timeout")))
        for group in batch.started:
            request, cached_tokens = group.request, group.cached_tokens or 0
            output.started.append((request.key, Started(request.generate.wid, cached_tokens)))
            self._prompt_tokens += len(request.prompt_ids)
            self._cached_tokens += cached_tokens
        if unclean := self._blocks.take_unclean():
            self._runner.clear(unclean)
        started = time.perf_counter()
        launched = self._runner.launch(batch, previous) if batch.rows else None
        if previous is not None:
            self._take(previous, output)
        if self._overlaps:
            self._under_way = launched
        elif launched is not None:
            self._take(launched, output)
            if self._budget.is_bounded:
                seconds = time.perf_counter() - started
                seconds -= self._runner.images.seconds if self._runner.images else 0
                self._budget.learn(batch.num_decodes, batch.num_prompt_tokens, seconds)
        return output

    def check_ranks(self) -> None:
        """Wait for a sign of life of every process of the engine."""
        self._runner.meet()

    def stats(self) -> EngineStats:
        """Return the numbers to publish after a step."""
        scheduler, images = self._scheduler, self._runner.images
        return EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            free_blocks=self._blocks.num_free,
            total_blocks=self._blocks.num_blocks,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=scheduler.num_preemptions,
            drafted_tokens=scheduler.speculation.num_drafted,
            accepted_tokens=scheduler.speculation.num_accepted,
            nonfinite_logits=self._nonfinite_logits,
            encoded_images=images.num_encoded if images else 0,
            cached_images=images.num_found if images else 0,
            **self._blocks.state_stats(),
            **self._runner.device_memory(),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if requests, sequences and blocks do not add up."""
        self._scheduler.check_integrity()
        assert all(not group.is_finished for group in self._groups.values())
        if not self._groups:
            assert self._blocks.num_free == self._blocks.num_blocks

    def _is_valid(self, request: Generate) -> bool:
        """Whether the model can compute the request; the worker should have rejected others."""
        tokens = (request.prompt_ids, *request.resume)
        is_for_task = (request.pooling is None) == (self.card.task == "generate")
        return (
            is_for_task
            and bool(request.prompt_ids)
            and are_images_right(request, self.card)
            and all(
                min(ids, default=0) >= 0 and max(ids, default=0) < self.card.vocab_size
                for ids in tokens
            )
        )

    def _take(self, step: RunningStep, output: StepOutput) -> None:
        """Wait for a step's samples and say what they are."""
        for row, scores in step.read_scores():
            if not all([score.is_finite for score in scores]):
                self._fail_damaged(row.sequence, output)
            elif group := self._groups.get(row.sequence.request.key):
                self._report_scores(group, row.scored.start + 1, scores, output)
        for row, pooled in step.read_pooled():
            if pooled is None:
                self._fail_damaged(row.sequence, output)
            elif not row.sequence.is_finished:  # aborted while the step was under way
                self._report_pooled(row, pooled, output)
        for row, samples in step.read():
            if not all([sample.is_finite for sample in samples]):
                self._fail_damaged(row.sequence, output)
                continue
            num_taken = self._scheduler.update(row, [sample.token_id for sample in samples])
            if row.sequence.has_failed and row.sequence.grammar is not None:
                log.error(
                    "request %s failed: its grammar: %s",
                    row.sequence.request.generate.request_id,
                    row.sequence.grammar.error,
                )
                self._fail(row.sequence, output)
                continue
            for left, sample in zip(range(num_taken, 0, -1), samples, strict=False):
                self._report(row.sequence, sample, left - 1, output)

    def _fail_damaged(self, sequence: Sequence, output: StepOutput) -> None:
        """Give a request up whose logits are NaN or infinite: no token follows from them."""
        if sequence.is_finished:  # while the step was under way
            return
        log.error(
            "request %s: logits are not finite at token %d; the weights are damaged, or too large"
            " for %s",
            sequence.request.generate.request_id,
            len(sequence.token_ids),
            self.card.dtype,
        )
        self._nonfinite_logits += 1
        self._fail(sequence, output, is_damaged=True)

    def _fail(self, sequence: Sequence, output: StepOutput, *, is_damaged: bool = False) -> None:
        """End a request for one of whose choices no token can be found."""
        request = sequence.request
        group = self._groups.pop(request.key)
        self._scheduler.abort(group, request.generate.choices, is_damaged=is_damaged)
        output.failed.append((request.key, Failed(request.generate.wid, "engine_error")))

    def _report_scores(
        self, group: SequenceGroup, first: int, scores: list[Sample], output: StepOutput
    ) -> None:
        """Say how likely the prompt's tokens from the `first` on were.

        What was computed again after a preemption is not said twice.
        """
        logprobs = [score.logprob for score in scores if score.logprob is not None]
        news = tuple(logprobs[group.num_scored - first :])
        if news:
            key, wid = group.request.key, group.request.generate.wid
            output.prompt_logprobs.append((key, PromptLogprobs(wid, group.num_scored, news)))
            group.num_scored += len(news)

    def _report_pooled(self, row: Row, pooled: bytes, output: StepOutput) -> None:
        """Say what was asked of a prompt, and with that end its request."""
        row.sequence.finish_reason = "stop"
        self._scheduler.update(row, ())
        key = row.sequence.request.key
        finished = self._groups.pop(key).finished()
        output.finished.append((key, msgspec.structs.replace(finished, pooled=pooled)))

    def _report(
        self, sequence: Sequence, sample: Sample, num_later: int, output: StepOutput
    ) -> None:
        """Say that a token was sampled, with `num_later` after it in the same step."""
        key, is_last = sequence.request.key, num_later == 0
        self._generated_tokens += 1
        chunk = Chunk(
            sequence.request.generate.wid,
            sequence.choice,
            sequence.num_output_tokens - 1 - num_later,
            (sample.token_id,),
            sequence.finish_reason if is_last else None,
            sequence.stop_token_id if is_last else None,
            () if sample.logprob is None else (sample.logprob,),
        )
        output.chunks.append((key, chunk))
        if is_last and sequence.is_finished and (group := self._groups[key]).is_finished:
            del self._groups[key]
            output.finished.append((key, group.finished()))


def overlaps(asked: str, device: str) -> bool:
    """Return whether steps overlap; by itself on CUDA, as on a CPU nobody could wait."""
    return asked == "on" or (asked == "auto" and device.startswith("cuda"))


def _last_chunk(sequence: Sequence) -> Chunk:
    """Return the end of a choice that has no room for another token."""
    wid = sequence.request.generate.wid
    return Chunk(wid, sequence.choice, sequence.num_output_tokens, (), sequence.finish_reason)


def _without(output: StepOutput, key: Key) -> StepOutput:
    parts: dict[str, list[Any]] = vars(output)
    return StepOutput(**{k: [it for it in part if it[0] != key] for k, part in parts.items()})
