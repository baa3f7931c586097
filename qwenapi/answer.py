"""One caller's answer on its way: tokens of all its choices in, text out.

Knows engines by EngineClient and text by TextStream; refuses to know any dialect. Whatever ends an
answer, `close` frees what it holds in the engines; calling it twice does no harm.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwenapi.disconnect import ClientWatcher
from qwenapi.engine_client import EngineClient, NoEngine, Refused
from qwenapi.errors import (
    ApiError,
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    InternalError,
    QueueFull,
)
from qwenapi.generation import Beat, Generation, Mailbox
from qwenapi.limits import Limits
from qwenapi.text.stop_matcher import StopAutomaton
from qwenapi.text.text_stream import TextStream
from qwenapi.text.tokenizer import Tokenizer
from workers.protocol import Chunk, Failed, Rejected, SamplingParams, TokenLogprob


@dataclass(frozen=True, kw_only=True)
class Question:
    """What to ask of the engines for one caller: prompts, each with its parameters, and how their
    text ends.
    """

    prompts: Sequence[tuple[Sequence[int], SamplingParams]]
    request_id: str
    n: int = 1
    priority: int = 0
    stops: Sequence[str] = field(default=(), repr=False)
    skip_special_tokens: bool = True
    limits: Limits = Limits()


@dataclass(frozen=True)
class Delta:
    """What is new in one choice; `finish_reason` is set on its last delta."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


class Answer:
    """All choices of all prompts of one request; choice c of prompt p has the index p × n + c."""

    def __init__(
        self, engine: EngineClient, tokenizer: Tokenizer, environ: Mapping[str, Any]
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._mailbox = Mailbox()
        self._streams: dict[tuple[Generation, int], tuple[int, TextStream]] = {}
        self._generations: list[Generation] = []
        # Up to the end of each choice: what an engine sent behind a stop string is nobody's.
        self.completion_tokens = 0
        # While queued and between tokens nothing is written, so only this sees a caller that
        # leaves.
        self._watcher = ClientWatcher(environ, self._mailbox.cancel)

    def ask(self, question: Question) -> None:
        """Return when every prompt was accepted; raise the ApiError that says why not, or
        Cancelled.
        """
        indexes = itertools.count()
        stops = StopAutomaton(question.stops)
        try:
            for prompt_ids, params in question.prompts:
                generation = self._engine.submit(
                    prompt_ids,
                    params,
                    request_id=question.request_id,
                    n=question.n,
                    priority=question.priority,
                    limits=question.limits,
                    mailbox=self._mailbox,
                )
                self._generations.append(generation)
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
            for generation, event in self._mailbox.take():
                if isinstance(event, Chunk):
                    batch += self._on_chunk(generation, event)
                elif isinstance(event, Failed):
                    raise failure(event)
                is_beat = is_beat or isinstance(event, Beat)
            if batch or is_beat:
                for generation in self._generations:
                    generation.touch()
                yield batch

    def wholes(self) -> list[tuple[str, str]]:
        """Wait for the end and return each choice's text and finish reason."""
        texts: dict[int, list[str]] = {index: [] for index, _ in self._streams.values()}
        reasons = dict.fromkeys(texts, "")
        for delta in itertools.chain.from_iterable(self.deltas()):
            texts[delta.index].append(delta.text)
            reasons[delta.index] = delta.finish_reason or reasons[delta.index]
        return [("".join(texts[index]), reasons[index]) for index in sorted(texts)]

    def check_caller(self) -> None:
        """Raise Cancelled if the caller has gone."""
        self._mailbox.check()

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching the caller and free whatever still runs."""
        self._watcher.stop()
        for generation in self._generations:
            generation.close()

    @property
    def prompt_tokens(self) -> int:
        return sum(len(generation.request.prompt_ids) for generation in self._generations)

    @property
    def cached_tokens(self) -> int:
        return sum(generation.num_cached_tokens for generation in self._generations)

    def _text_stream(
        self, question: Question, params: SamplingParams, stops: StopAutomaton
    ) -> TextStream:
        return TextStream(
            self._tokenizer,
            stops,
            skip_special_tokens=question.skip_special_tokens,
            min_tokens=params.min_tokens,
        )

    def _on_chunk(self, generation: Generation, chunk: Chunk) -> list[Delta]:
        if (generation, chunk.choice) not in self._streams:
            return []  # tokens that were on their way when a stop string ended the choice
        index, stream = self._streams[generation, chunk.choice]
        self.completion_tokens += len(chunk.token_ids)
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
            del self._streams[generation, chunk.choice]
            generation.close_choice(chunk.choice)
        return [Delta(index, text, logprobs, reason)] if text or logprobs or reason else []


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
        return EngineUnavailable(
            "The request waited too long for its turn. Wait, then try again.", retry_after=5
        )
    return EngineFailed()
