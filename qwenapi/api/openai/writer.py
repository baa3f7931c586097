"""Writer, of one generation whole or streamed, and ChatWriter, of chat completions."""

import hashlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any, ClassVar, TypeVar

from qwenapi import __version__
from qwenapi.api.openai import render
from qwenapi.api.openai.logprobs import chat_logprobs, prompt_logprobs
from qwenapi.errors import DIALECTS, ApiError, Wording
from qwenapi.generation.chat import PreparedChat
from qwenapi.generation.chat_output import ChatDelta, ChatOutput, without_reasoning
from qwenapi.generation.pieces import sent_pieces
from qwenapi.generation.request import GenerationRequest
from qwenapi.generation.sampling import SamplingRequest
from qwenapi.generation.stream import GenerationStream
from qwenapi.settings.profile import Profile
from qwenapi.text.output.events import join_events
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import TokenLogprob

T = TypeVar("T")


class Writer(ABC):
    """Puts one stream into words, at once or as it comes."""

    CHUNKS: ClassVar[type[render.Chunks]]

    def __init__(
        self,
        stream: GenerationStream,
        ask: SamplingRequest,
        profile: Profile,
        tokenizer: Tokenizer,
        wanted: GenerationRequest,
    ) -> None:
        self._profile = profile
        self._stream = stream
        self._ask = ask
        self._bytes_of = tokenizer.token_bytes.__getitem__
        self._prompts = [prompt_ids for prompt_ids, _ in wanted.prompts]
        self._num_choices = len(wanted.prompts) * ask.n
        self._skipped = tokenizer.special_ids if ask.skip_special_tokens else frozenset()
        id_ = self.make_id(ask.request_id or uuid.uuid4().hex)
        fingerprint = _fingerprint(wanted.model_hash) if profile.as_openai else ""
        self._reply = render.Reply(id_, int(time.time()), profile.canonical, fingerprint)

    @abstractmethod
    def make_id(self, name: str) -> str:
        """Return the answer's public id."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """Return the whole answer's body."""

    @abstractmethod
    def pieces(self, chunks: Any) -> Iterator[bytes]:
        """Yield the events of what has come since the last time, nothing where that is nothing."""

    def body(self) -> dict[str, Any]:
        """Return the whole answer."""
        body = self.whole()
        return body if self._profile.logprobs_key else render.without_extras(body)

    def events(self, wording: Wording) -> Iterator[bytes]:
        """Yield the server-sent events; everything that waits goes out as one piece."""
        chunks = self.CHUNKS(self._reply, self._ask.include_usage, self._profile.logprobs_key)
        if self._ask.continuous_usage:
            chunks.show_usage(self.usage())
        # An empty piece still sends the headers: the request is accepted, and its status is final.
        yield b"".join(map(partial(self.opening, chunks), range(self._num_choices)))

        def failed(error: ApiError) -> bytes:
            return render.error_event(DIALECTS[self._profile.dialect](error, wording).body)

        pieces = chain(self.pieces(chunks), self._ending(chunks))
        yield from sent_pieces(self._stream, pieces, beat=chunks.heartbeat, failed=failed)

    def _ending(self, chunks: Any) -> Iterator[bytes]:
        yield (chunks.usage(self.usage()) if self._ask.include_usage else b"") + render.DONE

    def opening(self, chunks: Any, index: int) -> bytes:
        """Return the first event of a choice, nothing where that says nothing."""
        return bytes(chunks.opening(index, self._prompt_ids(index)))

    def _prompt_ids(self, index: int) -> Sequence[int] | None:
        """Return the ids of a choice's prompt, for a caller who wants to know them."""
        return self._prompts[index // self._ask.n] if self._ask.return_token_ids else None

    def _ids(self, index: int, output: Iterable[int]) -> render.ChoiceIds | None:
        prompt = self._prompt_ids(index)
        return None if prompt is None else render.ChoiceIds(prompt, tuple(output))

    def _prompt_logprobs(self, prompt: int) -> list[dict[str, Any] | None] | None:
        """Return how likely a prompt was, for a caller who wants to know."""
        count = self._ask.prompt_logprobs
        if count is None:
            return None
        entries = self._stream.prompt_logprobs(prompt)
        return prompt_logprobs(self._prompts[prompt], entries, count, self._bytes_of)

    def _counted(self, chunks: render.Chunks, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches; events say the counts so far where that was asked for."""
        for batch in batches:
            if self._ask.continuous_usage:
                chunks.show_usage(self.usage())
            yield batch

    def usage(self) -> render.TokenUsage:
        """Return the tokens so far."""
        stream = self._stream
        return render.TokenUsage(
            stream.prompt_tokens, stream.completion_tokens, stream.cached_tokens
        )


class ChatWriter(Writer):
    """Chat completions: content, thoughts and tool calls."""

    CHUNKS = render.ChatChunks

    def __init__(
        self,
        *arguments: Any,
        chat: PreparedChat,
        reasoning_field: render.ReasoningField,
        shows_reasoning: bool,
    ) -> None:
        super().__init__(*arguments)
        self._output = ChatOutput(chat.new_parser)
        self._counts_reasoning = chat.thinking != "off"
        self._field = reasoning_field
        self._shows_reasoning = shows_reasoning

    def make_id(self, name: str) -> str:
        return render.chat_id(name)

    def whole(self) -> dict[str, Any]:
        parts: dict[int, list[ChatDelta]] = {}
        for delta in chain.from_iterable(self._deltas()):
            parts.setdefault(delta.index, []).append(delta)
        choices = [self._choice(index, deltas) for index, deltas in sorted(parts.items())]
        body = render.chat_body(self._reply, choices, self.usage())
        scores = self._prompt_logprobs(0)
        return body if scores is None else body | {"prompt_logprobs": scores}

    def pieces(self, chunks: render.ChatChunks) -> Iterator[bytes]:
        for deltas in self._counted(chunks, self._deltas()):
            yield b"".join(chain.from_iterable(self._events_of(chunks, delta) for delta in deltas))

    def usage(self) -> render.TokenUsage:
        usage = super().usage()
        if not self._counts_reasoning:
            return usage
        return render.TokenUsage(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            self._output.reasoning_tokens,
        )

    def _deltas(self) -> Iterator[list[ChatDelta]]:
        return self._output.read(self._stream.deltas())

    def _choice(self, index: int, deltas: Sequence[ChatDelta]) -> render.MessageChoice:
        output = join_events(chain.from_iterable(delta.events for delta in deltas))
        thought = output.reasoning if self._shows_reasoning else ""
        return render.MessageChoice(
            index,
            render.chat_message(output, render.reasoning_keys(thought, self._field)),
            deltas[-1].finish_reason or "",
            self._logprobs(tuple(chain.from_iterable(delta.logprobs for delta in deltas))),
            self._ids(index, chain.from_iterable(delta.token_ids for delta in deltas)),
        )

    def _events_of(self, chunks: render.ChatChunks, delta: ChatDelta) -> Iterable[bytes]:
        events = delta.events if self._shows_reasoning else without_reasoning(delta.events)
        rendered = [
            said for event in events if (said := render.event_delta(event, self._field)) is not None
        ]
        logprobs = self._logprobs(delta.logprobs)
        ids = delta.token_ids if self._ask.return_token_ids else None
        if (delta.logprobs or ids) and not rendered:
            rendered = [{"content": ""}]
        for said in rendered:
            yield chunks.delta(delta.index, said, logprobs, ids)
            logprobs = ids = None  # they are of the tokens, and said once
        if delta.finish_reason:
            yield chunks.finish(delta.index, delta.finish_reason)

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._ask.logprobs is None:
            return None
        return chat_logprobs(entries, self._bytes_of, has_refusal=self._profile.as_openai)


@cache
def _fingerprint(model_hash: str) -> str:
    """Return what changes when answers to one seed may: this build, or the model."""
    return f"fp_{hashlib.sha256(f'{__version__} {model_hash}'.encode()).hexdigest()[:10]}"
