"""Requests of all kinds that come, end and are given up at random; seeded. Knows an engine only."""

import random

from workers.engine.engine import Engine
from workers.wire.protocol import Generate, SamplingParams

MOST_LIVE = 64


class RandomLoad:
    """Requests of all kinds that come, end and are given up at random."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._chosen = random.Random(0)
        self._live: set[tuple[int, int]] = set()
        self.num_added = 0

    def run(self, num_steps: int) -> None:
        """Step with requests coming, then until nothing is left."""
        for _ in range(num_steps):
            while len(self._live) < MOST_LIVE and self._chosen.random() < 0.3:
                self._add()
            if self._live and self._chosen.random() < 0.02:
                key = self._chosen.choice(sorted(self._live))
                self._engine.abort(key)
                self._live.remove(key)
            self._step()
        while self._engine.has_work:
            self._step()

    def _step(self) -> None:
        output = self._engine.step()
        assert not output.failed, output.failed
        self._live -= {key for key, _ in output.finished}

    def _add(self) -> None:
        chosen, card = self._chosen, self._engine.card
        longest = min(2048, card.max_model_len // 2)
        ids = chosen.choices(range(card.vocab_size), k=chosen.randint(1, longest))
        params = SamplingParams(
            max_tokens=chosen.randint(1, min(200, longest)),
            temperature=chosen.choice((0.0, 0.7, 1.0)),
            top_k=chosen.choice((0, 20)),
            top_p=chosen.choice((0.8, 1.0)),
            presence_penalty=chosen.choice((0.0, 0.0, 1.0)),
            logprobs=chosen.choice((None, None, None, 5)),
            seed=chosen.randrange(1 << 32),
        )
        key = (0, self.num_added)
        request = Generate(wid=key[1], request_id="leak", prompt_ids=tuple(ids), params=params)
        self._engine.add(key, request)
        self._live.add(key)
        self.num_added += 1
