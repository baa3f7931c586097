"""GenerationRequest: what one caller wants of the engines: prompts, parameters, how text ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwenapi.settings.queue_limits import QueueLimits
from workers.wire.grammar import Grammar
from workers.wire.protocol import Image, Pooling, SamplingParams


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Prompts, each with its parameters; how their text ends; in which queue they wait."""

    prompts: Sequence[tuple[Sequence[int], SamplingParams]]
    model_hash: str  # of the model whose tokenizer made them
    request_id: str
    n: int = 1
    priority: int | None = None  # as the caller asked
    stops: Sequence[str] = field(default=(), repr=False)
    skip_special_tokens: bool = True
    includes_stop: bool = False  # in the text
    cache_salt: str = field(default="", repr=False)
    limits: QueueLimits = QueueLimits()
    grammar: Grammar | None = None
    by_token: bool = False  # one delta a token, for who has to count them
    pooling: Pooling | None = None  # in the place of answers
    images: tuple[Image, ...] = field(default=(), repr=False)  # in each prompt
