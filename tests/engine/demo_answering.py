"""Ask the shipped demo model through the engine: prompts by its own template, answers greedy."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.wire.protocol import Generate, SamplingParams

DEMO = Path(__file__).resolve().parents[2] / "etc" / "models" / "demo"
MAX_TOKENS = 320


class DemoModel:
    """An engine over the shipped weights; `load_seconds` is from weights to the first token."""

    def __init__(self, **more: Any) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(DEMO)
        settings: dict[str, Any] = {"num_blocks": 2048, "block_size": 32, "threads": 2} | more
        started = time.perf_counter()
        self._engine = Engine(EngineConfig(str(DEMO), **settings), lambda stage, fraction: None)
        self._serial = 0
        self.generate([self.ids_of("Hello")], max_tokens=1)
        self.load_seconds = time.perf_counter() - started

    def ask(self, *messages: str, system: str = "", **template: Any) -> str:
        """Return the answer to messages of the user and the assistant in turn."""
        head = [{"role": "system", "content": system}] if system else []
        turns = [
            {"role": ("user", "assistant")[i % 2], "content": text}
            for i, text in enumerate(messages)
        ]
        return self.ask_many([head + turns], **template)[0]

    def ask_many(self, chats: Sequence[list[dict[str, Any]]], **template: Any) -> list[str]:
        """Return the answers to many chats, computed together."""
        texts = self.generate([self.ids_of(chat, **template) for chat in chats])
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]

    def complete(self, text: str) -> str:
        """Return what follows a text outside any chat."""
        (ids,) = self.generate([self.tokenizer(text).input_ids])
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def generate(self, prompts: Sequence[list[int]], **params: Any) -> list[list[int]]:
        """Return the new ids of each prompt, greedy unless `params` say otherwise."""
        params = {"max_tokens": MAX_TOKENS, "temperature": 0.0} | params
        answers: dict[object, list[int]] = {}
        for prompt in prompts:
            answers[self._add(prompt, SamplingParams(**params))] = []
        while self._engine.has_work:
            for key, chunk in self._engine.step().chunks:
                answers[key] += chunk.token_ids
        return list(answers.values())

    def _add(self, prompt: list[int], params: SamplingParams) -> int:
        self._serial += 1
        wid = self._serial
        request = Generate(wid=wid, request_id=str(wid), prompt_ids=tuple(prompt), params=params)
        self._engine.add(wid, request)
        return wid

    def score(self, prompts: Sequence[list[int]]) -> list[float]:
        """Return the log-probabilities of all tokens of the prompts but their first."""
        found: list[float] = []
        for prompt in prompts:
            self._add(prompt, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
        while self._engine.has_work:
            for _, scores in self._engine.step().prompt_logprobs:
                found += [one.logprob for one in scores.logprobs]
        return found

    def ids_of(self, chat: list[dict[str, Any]] | str, **template: Any) -> list[int]:
        """Return the prompt of a chat, or of one message, by the model's own template."""
        messages = [{"role": "user", "content": chat}] if isinstance(chat, str) else chat
        text = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            **{"enable_thinking": False} | template,
        )
        return list(self.tokenizer(text).input_ids)
