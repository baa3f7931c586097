"""CompletionWriter: raw completions, with the prompt before them or the best of several."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from qwenapi.api.openai import render
from qwenapi.api.openai.logprobs import TextOffsets, completion_logprobs
from qwenapi.api.openai.schemas import CompletionRequest
from qwenapi.api.openai.writer import Writer
from qwenapi.generation.delta import Delta, gather
from qwenapi.generation.request import GenerationRequest
from qwenapi.generation.stream import GenerationStream
from qwenapi.settings.profile import Profile
from qwenapi.text.tokenizer import Tokenizer


class CompletionWriter(Writer):
    """Raw completions: text as it is."""

    CHUNKS = render.CompletionChunks
    _ask: CompletionRequest

    def __init__(
        self,
        stream: GenerationStream,
        ask: CompletionRequest,
        profile: Profile,
        tokenizer: Tokenizer,
        wanted: GenerationRequest,
    ) -> None:
        super().__init__(stream, ask, profile, tokenizer, wanted)
        self._tokenizer = tokenizer
        # Choices whose text begins with a prompt that is still to be shown.
        self._unechoed = set(range(self._num_choices)) if ask.echo else set()
        self._text_offsets = [self._new_offsets(index) for index in range(self._num_choices)]

    def make_id(self, name: str) -> str:
        return render.completion_id(name)

    def whole(self) -> dict[str, Any]:
        wholes = best_of(gather(self._stream.deltas()), self._ask.n, self._ask.best_of)
        choices = [self._choice(whole) for whole in wholes]
        return render.completion_body(self._reply, choices, self.usage())

    def pieces(self, chunks: render.CompletionChunks) -> Iterator[bytes]:
        for deltas in self._counted(chunks, self._stream.deltas()):
            yield b"".join(self._event(chunks, delta) for delta in deltas)

    def usage(self) -> render.TokenUsage:
        usage = super().usage()
        return replace(usage, completion_tokens=0) if self._ask.max_tokens == 0 else usage

    def _choice(self, whole: Delta) -> render.ReplyChoice:
        text, logprobs = self._shown(whole)
        reason = whole.finish_reason or ""
        scores = self._prompt_logprobs(whole.index // self._ask.n)
        ids = self._ids(whole.index, self._output_ids(whole))
        return render.ReplyChoice(whole.index, text, reason, logprobs, ids, scores)

    def _event(self, chunks: render.CompletionChunks, delta: Delta) -> bytes:
        event = b""
        ids = self._output_ids(delta) if self._ask.return_token_ids else None
        text, logprobs = self._shown(delta)
        if text or (logprobs and logprobs["tokens"]) or ids:
            event = chunks.content(delta.index, text, logprobs, ids)
        if delta.finish_reason:
            reason = delta.finish_reason
            event += chunks.finish(delta.index, reason)
        return event

    def _output_ids(self, delta: Delta) -> tuple[int, ...]:
        return () if self._ask.max_tokens == 0 else delta.token_ids

    def _shown(self, delta: Delta) -> tuple[str, dict[str, Any] | None]:
        """Return a delta's text and log-probabilities, behind those of an echoed prompt.

        A caller who wants no token had one computed all the same.
        """
        index, text, entries = delta.index, delta.text, list(delta.logprobs)
        if self._ask.echo:  # who sums up an echo's log-probabilities counts on one for each token
            entries += delta.stop_logprobs
        if self._ask.max_tokens == 0:
            text, entries = "", []
        prompt_ids: Sequence[int] = ()
        if index in self._unechoed:
            self._unechoed.discard(index)
            prompt_ids = self._prompts[index // self._ask.n]
            text = self._tokenizer.decode(prompt_ids, skip_special_tokens=False) + text
            if self._ask.logprobs is not None:
                entries = [*self._stream.prompt_logprobs(index // self._ask.n), *entries]
        if self._ask.logprobs is None:
            return text, None
        offsets = self._text_offsets[index]
        return text, completion_logprobs(entries, self._bytes_of, offsets, prompt_ids)

    def _new_offsets(self, index: int) -> TextOffsets:
        num_echoed = len(self._prompts[index // self._ask.n]) if self._ask.echo else 0
        return TextOffsets(self._bytes_of, self._skipped, num_echoed)


def best_of(candidates: Sequence[Delta], n: int, count: int) -> list[Delta]:
    """Return of each `count` candidates the `n` whose tokens were likeliest on average."""
    if count == n:
        return list(candidates)
    chosen: list[Delta] = []
    for start in range(0, len(candidates), count):
        of_one_prompt = candidates[start : start + count]
        for candidate in sorted(of_one_prompt, key=_mean_logprob, reverse=True)[:n]:
            chosen.append(replace(candidate, index=len(chosen)))
    return chosen


def _mean_logprob(whole: Delta) -> float:
    entries = whole.logprobs + whole.stop_logprobs
    return sum(entry.logprob for entry in entries) / max(1, len(entries))
