"""One caller's answer on its way: tokens of all its choices in, text out.

Knows engines by EngineClient, text by TextStream and its RequestMetrics; refuses to know any
dialect. Whatever ends an answer, `close` frees what it holds in the engines and settles its entry;
calling it twice does no harm.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwenapi.engines.client import EngineClient, NoEngine, Refused
from qwenapi.engines.generation import Beat, Generation
from qwenapi.engines.mailbox import Cancelled, Mailbox
from qwenapi.errors import (
    ApiError,
    ContextLengthExceeded,
    EngineCrash,
    EngineFailed,
    EngineUnavailable,
    InternalError,
    ModelChanged,
    QueueFull,
    QueueTimeout,
    ServerShutdown,
)
from qwenapi.generation.disconnect import ClientWatcher
from qwenapi.keys import RateLimit
from qwenapi.metrics.layout import FAILURES
from qwenapi.metrics.store import RequestMetrics
from qwenapi.settings.queue_limits import QueueLimits
from qwenapi.text.stop_matcher import StopAutomaton
from qwenapi.text.text_stream import TextStream
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import Chunk, Failed, Rejected, SamplingParams, Started, TokenLogprob


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What to ask of the engines for one caller: prompts, each with its parameters, and how their
    text ends.
    """

    prompts: Sequence[tuple[Sequence[int], SamplingParams]]
    model_hash: str  # of the model whose tokenizer made them
    request_id: str
    n: int = 1
    priority: int | None = None  # as the caller asked
    stops: Sequence[str] = field(default=(), repr=False)
    skip_special_tokens: bool = True
    limits: QueueLimits = QueueLimits()


@dataclass(frozen=True)
class Delta:
    """What is new in one choice; `finish_reason` is set on its last delta."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


class GenerationStream:
    """All choices of all prompts of one request; choice c of prompt p has the index p × n + c."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer,
        entry: RequestMetrics,
        rate_limit: RateLimit,
        environ: Mapping[str, Any],
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._entry = entry
        self._rate_limit = rate_limit
        self._mailbox = Mailbox()
        self._streams: dict[tuple[Generation, int], tuple[int, TextStream]] = {}
        self._generations: list[Generation] = []
        self._finish_reason = ""
        self._is_whole = False
        # While queued and between tokens nothing is written, so only this sees a caller that
        # leaves.
        self._watcher = ClientWatcher(environ, self._mailbox.cancel)

    def ask(self, question: GenerationRequest) -> None:
        """Return when every prompt was accepted; raise the ApiError that says why not, or
        Cancelled.
        """
        indexes = itertools.count()
        stops = StopAutomaton(question.stops)
        key = self._rate_limit.key
        num_tokens = sum(len(prompt_ids) for prompt_ids, _ in question.prompts)
        self._rate_limit.enter(num_tokens, question.limits.queue_timeout, self.check_caller)
        try:
            for prompt_ids, params in question.prompts:
                generation = self._engine.submit(
                    prompt_ids,
                    params,
                    request_id=question.request_id,
                    n=question.n,
                    priority=key.urgency(question.priority),
                    tenant=key.tenant,
                    model_hash=question.model_hash,
                    limits=question.limits,
                    mailbox=self._mailbox,
                )
                self._generations.append(generation)
                self._entry.accept(len(prompt_ids))
                for choice in generation.request.choices:
                    self._streams[generation, choice] = (
                        next(indexes),
                        self._text_stream(question, params, stops),
                    )
        except Refused as refused:
            raise refusal(refused.rejected) from refused
        except NoEngine as error:
            raise EngineUnavailable(retry_after=1) from error

    def deltas(self) -> Iterator[list[Delta]]:
        """Yield what has come since the last time, an empty list as a sign of life, until all
        choices have ended.

        Raises ApiError when an engine fails, Cancelled when the caller has gone.
        """
        while self._streams:
            batch: list[Delta] = []
            is_beat = False
            failed: Failed | None = None
            events = self._mailbox.take()
            now = time.monotonic()
            for generation, event in events:
                if isinstance(event, Chunk):
                    batch += self._on_chunk(generation, event, now)
                elif isinstance(event, Started):
                    self._entry.start()
                elif isinstance(event, Failed) and self._is_open(generation):
                    failed = event
                is_beat = is_beat or isinstance(event, Beat)
            if batch or is_beat:
                for generation in self._generations:
                    generation.touch()
                yield batch
            if failed is not None:  # after what came before it
                raise self._failure(failed)
        # Asked for more, and there is none: the caller did take the last of it.
        self._is_whole = True

    def check_caller(self) -> None:
        """Raise Cancelled if the caller has gone."""
        self._mailbox.check()

    def __enter__(self) -> "GenerationStream":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Stop watching the caller, free whatever still runs, and settle the entry."""
        self._watcher.stop()
        for generation in self._generations:
            generation.close()
        self._rate_limit.leave(self.completion_tokens, was_read=bool(self._generations))
        if isinstance(error, ApiError):
            self._entry.fail(error.code or error.type)
        elif isinstance(error, Exception) and not isinstance(error, Cancelled):
            self._entry.fail("internal_error")
        elif self._is_whole:
            self._entry.succeed(self._finish_reason, self.cached_tokens)
        else:
            self._entry.cancel()

    def fail(self, failure: str) -> None:
        """Let the request count as failed: its answer was given, but is of no use."""
        self._entry.fail(failure)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(generation.request.prompt_ids) for generation in self._generations)

    @property
    def completion_tokens(self) -> int:
        """Return the tokens up to the end of each choice: what an engine sent behind a stop string
        is nobody's.
        """
        return self._entry.completion_tokens

    @property
    def cached_tokens(self) -> int:
        return sum(generation.num_cached_tokens for generation in self._generations)

    def _is_open(self, generation: Generation) -> bool:
        """Return whether a generation still owes something to the caller."""
        return any(owing is generation for owing, _ in self._streams)

    def _failure(self, failed: Failed) -> ApiError:
        error = failure(failed)
        is_named = failed.reason in FAILURES
        self._entry.fail(failed.reason if is_named else error.code or error.type)
        return error

    def _text_stream(
        self, question: GenerationRequest, params: SamplingParams, stops: StopAutomaton
    ) -> TextStream:
        return TextStream(
            self._tokenizer,
            stops,
            skip_special_tokens=question.skip_special_tokens,
            min_tokens=params.min_tokens,
        )

    def _on_chunk(self, generation: Generation, chunk: Chunk, now: float) -> list[Delta]:
        if (generation, chunk.choice) not in self._streams:
            return []  # tokens that were on their way when a stop string ended the choice
        index, stream = self._streams[generation, chunk.choice]
        self._entry.tokens(index, len(chunk.token_ids), now)
        ids, logprobs = chunk.token_ids, chunk.logprobs
        if chunk.stop_token_id is not None:
            ids, logprobs = ids[:-1], logprobs[:-1]
        text, is_stopped = stream.push(ids)
        reason: str | None = chunk.finish_reason
        if reason is not None and not is_stopped:
            rest, is_stopped = stream.finish()
            text += rest
        if is_stopped:
            reason = "stop"
        if reason is not None:
            self._finish_reason = reason
            del self._streams[generation, chunk.choice]
            generation.close_choice(chunk.choice)
        return [Delta(index, text, logprobs, reason)] if text or logprobs or reason else []


def gather(batches: Iterable[Sequence[Delta]]) -> list[Delta]:
    """Return each choice whole, in the order of their indexes, once all have ended."""
    parts: dict[int, list[Delta]] = {}
    for delta in itertools.chain.from_iterable(batches):
        parts.setdefault(delta.index, []).append(delta)
    return [
        Delta(
            index,
            "".join(delta.text for delta in deltas),
            tuple(itertools.chain.from_iterable(delta.logprobs for delta in deltas)),
            deltas[-1].finish_reason,
        )
        for index, deltas in sorted(parts.items())
    ]


def refusal(rejected: Rejected) -> ApiError:
    """Return what a caller is told of an engine's refusal."""
    if rejected.reason in ("queue_full", "overloaded"):
        return QueueFull(rejected.queue_size, rejected.max_queue_size, rejected.retry_after)
    if rejected.reason == "too_long":
        return ContextLengthExceeded()
    if rejected.reason == "draining":
        return EngineUnavailable(retry_after=rejected.retry_after)
    return InternalError()


def failure(failed: Failed) -> ApiError:
    """Return what a caller is told of a request that failed after it was accepted."""
    if failed.reason == "queue_timeout":
        return QueueTimeout(retry_after=5)
    if failed.reason == "server_shutdown":
        return ServerShutdown(retry_after=5)
    if failed.reason == "engine_crash":
        return EngineCrash()
    if failed.reason == "engine_unavailable":
        return EngineUnavailable(retry_after=5)
    if failed.reason == "model_changed":
        return ModelChanged(retry_after=1)
    return EngineFailed()
