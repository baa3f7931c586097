"""GenerationStream: what one caller is given: token ids of all its choices in, text out.

Knows engines by EngineClient, text by TextStream, and its RequestMetrics; refuses to know any
interface. Whatever ends a stream, `close` frees what it holds in the engines and settles its
metrics; calling it twice does no harm.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import zip_longest
from typing import Any

from qwenapi.engines.client import EngineClient, NoEngine, Refused
from qwenapi.engines.generation import Beat, Generation
from qwenapi.engines.mailbox import Cancelled, Mailbox
from qwenapi.errors import ApiError, EngineUnavailable
from qwenapi.generation.delta import Delta
from qwenapi.generation.disconnect import ClientWatcher
from qwenapi.generation.engine_errors import failure, refusal
from qwenapi.generation.request import GenerationRequest
from qwenapi.keys import RateLimit
from qwenapi.metrics.layout import FAILURES
from qwenapi.metrics.store import RequestMetrics
from qwenapi.text.stop_matcher import StopAutomaton
from qwenapi.text.text_stream import TextStream
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import Chunk, Failed, Finished, Started, TokenLogprob

# Of one request's prompts, as many are with the engines; the others follow as these end. So a
# request of thousands neither fills the queue nor is refused because of it.
MAX_PROMPTS_AT_ONCE = 256


class GenerationStream:
    """All choices of all prompts of one request; choice c of prompt p has the index p × n + c."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer,
        metrics: RequestMetrics,
        rate_limit: RateLimit,
        environ: Mapping[str, Any],
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._rate_limit = rate_limit
        self._mailbox = Mailbox()
        self._streams: dict[tuple[Generation, int], tuple[int, TextStream]] = {}
        self._generations: list[Generation] = []
        self._finish_reason = ""
        self._by_token = self._includes_stop = False
        self._unasked: Iterator[Generation] = iter(())
        self._num_open = 0  # of the generations
        self._is_whole = False
        # Nothing is written while queued and between tokens: only this sees a caller that leaves.
        self._watcher = ClientWatcher(environ, self._mailbox.cancel)

    def ask(self, request: GenerationRequest) -> None:
        """Return when every prompt was accepted, of many those that are asked at once.

        Raises an ApiError saying why one was not, or Cancelled.
        """
        self._by_token, self._includes_stop = request.by_token, request.includes_stop
        num_tokens = sum(len(prompt_ids) for prompt_ids, _ in request.prompts)
        self._rate_limit.enter(num_tokens, request.limits.queue_timeout, self.check_caller)
        self._unasked = self._submissions(request)
        self._submit()

    def _submit(self) -> None:
        """Ask for prompts that have not been asked for yet, until enough are under way."""
        while self._num_open < MAX_PROMPTS_AT_ONCE and next(self._unasked, None):
            self._num_open += 1

    def _submissions(self, request: GenerationRequest) -> Iterator[Generation]:
        """Submit one prompt after another; raise an ApiError where one is not accepted."""
        indexes = itertools.count()
        new_text = partial(
            TextStream,
            self._tokenizer,
            StopAutomaton(request.stops),
            skip_special_tokens=request.skip_special_tokens,
            includes_stop=request.includes_stop,
        )
        key = self._rate_limit.key
        for prompt_ids, params in request.prompts:
            try:
                generation = self._engine.submit(
                    prompt_ids,
                    params,
                    request_id=request.request_id,
                    n=request.n,
                    priority=key.urgency(request.priority),
                    tenant=key.tenant,
                    cache_salt=request.cache_salt,
                    model_hash=request.model_hash,
                    limits=request.limits,
                    mailbox=self._mailbox,
                    grammar=request.grammar,
                    pooling=request.pooling,
                    images=request.images,
                )
            except Refused as refused:
                raise refusal(refused.rejected) from refused
            except NoEngine as error:
                raise EngineUnavailable(retry_after=1) from error
            self._generations.append(generation)
            self._metrics.accept(len(prompt_ids))
            for choice in generation.request.choices:
                text = new_text(min_tokens=params.min_tokens)
                self._streams[generation, choice] = (next(indexes), text)
            yield generation

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
                    self._metrics.start()
                elif isinstance(event, Failed) and self._is_open(generation):
                    failed = event
                elif isinstance(event, Finished) and event.pooled:
                    self._finish(generation, 0, "stop")
                is_beat = is_beat or isinstance(event, Beat)
            if batch or is_beat:
                for generation in self._generations:
                    generation.touch()
                yield batch
            if failed is not None:  # after what came before it
                raise self._failure(failed)
            self._submit()
        # Asked for more, and there is none: the caller did take the last of it.
        self._is_whole = True

    def pooled(self) -> list[bytes]:
        """Return the numbers of all prompts, in their order, once the last has come."""
        for _ in self.deltas():
            pass
        return [generation.pooled for generation in self._generations]

    def check_caller(self) -> None:
        """Raise Cancelled if the caller has gone."""
        self._mailbox.check()

    def __enter__(self) -> "GenerationStream":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Stop watching the caller, free whatever still runs, and settle the metrics."""
        self._watcher.stop()
        for generation in self._generations:
            generation.close()
        self._rate_limit.leave(self.completion_tokens, was_read=bool(self._generations))
        if isinstance(error, ApiError):
            self._metrics.fail(error.name)
        elif isinstance(error, Exception) and not isinstance(error, Cancelled):
            self._metrics.fail("internal_error")
        elif self._is_whole:
            self._metrics.succeed(self._finish_reason, self.cached_tokens)
        else:
            self._metrics.cancel()

    def fail(self, failure: str) -> None:
        """Let the request count as failed: all of it was sent, but is of no use."""
        self._metrics.fail(failure)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(generation.request.prompt_ids) for generation in self._generations)

    def prompt_logprobs(self, prompt: int) -> list[TokenLogprob]:
        """Return how likely the tokens of a prompt were, from its second on, as far as is known."""
        return self._generations[prompt].prompt_logprobs

    @property
    def completion_tokens(self) -> int:
        """Return the tokens up to the end of each choice; what came behind a stop is nobody's."""
        return self._metrics.completion_tokens

    @property
    def cached_tokens(self) -> int:
        return sum(generation.num_cached_tokens for generation in self._generations)

    def _is_open(self, generation: Generation) -> bool:
        """Return whether a generation still owes something to the caller."""
        return any(owing is generation for owing, _ in self._streams)

    def _failure(self, failed: Failed) -> ApiError:
        error = failure(failed)
        is_named = failed.reason in FAILURES
        self._metrics.fail(failed.reason if is_named else error.name)
        return error

    def _on_chunk(self, generation: Generation, chunk: Chunk, now: float) -> list[Delta]:
        if (generation, chunk.choice) not in self._streams:
            return []  # tokens that were on their way when a stop string ended the choice
        index, stream = self._streams[generation, chunk.choice]
        self._metrics.tokens(index, len(chunk.token_ids), now)
        ids, logprobs = chunk.token_ids, chunk.logprobs
        stop_ids: tuple[int, ...] = ()
        stop_logprobs: tuple[TokenLogprob, ...] = ()
        if chunk.stop_token_id is not None and not self._includes_stop:
            ids, stop_ids = ids[:-1], ids[-1:]
            logprobs, stop_logprobs = logprobs[:-1], logprobs[-1:]
        deltas: list[Delta] = []
        is_stopped = False
        if self._by_token:
            for id_, logprob in zip_longest(ids[:-1], logprobs[:-1]):
                text, is_stopped = stream.push((id_,))
                logprob_ = (logprob,) if logprob else ()
                deltas.append(Delta(index, text, logprob_, num_tokens=1, token_ids=(id_,)))
                if is_stopped:
                    break
            ids, logprobs = ((), ()) if is_stopped else (ids[-1:], logprobs[-1:])
        text = ""
        if not is_stopped:
            text, is_stopped = stream.push(ids)
        reason: str | None = chunk.finish_reason
        if reason is not None and not is_stopped:
            rest, is_stopped = stream.finish()
            text += rest
        if is_stopped:
            reason = "stop"
        if reason is not None:
            self._finish(generation, chunk.choice, reason)
        if text or logprobs or reason or (ids and self._by_token):
            token_ids = ids + stop_ids
            ended_by = (stop_logprobs, stream.stop)
            deltas.append(Delta(index, text, logprobs, reason, len(ids), token_ids, *ended_by))
        return deltas

    def _finish(self, generation: Generation, choice: int, reason: str) -> None:
        """Note that nothing more is expected of a choice."""
        self._finish_reason = reason
        del self._streams[generation, choice]
        generation.close_choice(choice)
        self._num_open -= not self._is_open(generation)
