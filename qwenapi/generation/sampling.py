"""Sampling parameters: the request's, else the profile's, else the model's; checked.

Pure. A field's value is the request's, else the profile's, else --override-generation-config's,
else generation_config.json's, else neutral. Lengths the model cannot give are cut and reported; a
prompt that does not fit, or an id outside the vocabulary, is refused. A model card is what an
engine says of its model at its hello.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict, cast

from qwenapi.errors import BadRequest, ContextLengthExceeded
from qwenapi.settings.sampling_overrides import sampling_overrides
from qwenapi.settings.table import Settings
from workers.wire.protocol import ModelCard, SamplingParams

Clamped = Mapping[str, int | float]

# What front ends send for "no seed", as vLLM and llama.cpp take it.
ANY_SEED = -1


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """What both interfaces ask of sampling; `logprobs` counts alternatives to the chosen token."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = field(default=(), repr=False)
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    priority: int | None = None
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = field(default=(), repr=False)
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool = False
    cache_salt: str = field(default="", repr=False)
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class RequestDefaults:
    """What a profile fills in where a request is silent; `max_tokens` at most the room left, None:
    the model's, or that. `has_model_defaults`: what is None is generation_config.json's to say, but
    for `overrides`, which go before it.
    """

    max_tokens: int | None = None
    has_model_defaults: bool = True
    overrides: Mapping[str, float] = field(default_factory=dict)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def of_model(self, card: ModelCard) -> Mapping[str, float]:
        """Return what holds where neither a request nor the profile says anything."""
        return {**(card.generation_config if self.has_model_defaults else {}), **self.overrides}


def defaults_of(settings: Settings, max_tokens: int = 0) -> RequestDefaults:
    """Return a profile's defaults; `max_tokens` where its settings have none, 0: the room left."""
    return RequestDefaults(
        max_tokens=settings.defaults_max_tokens or max_tokens or None,
        has_model_defaults=settings.generation_config != "vllm",
        overrides=sampling_overrides(settings),
        temperature=settings.defaults_temperature,
        top_p=settings.defaults_top_p,
        top_k=settings.defaults_top_k,
        min_p=settings.defaults_min_p,
        repetition_penalty=settings.defaults_repetition_penalty,
    )


class EngineParams(NamedTuple):
    """The engine's parameters, and what became of the request's values that had to be cut."""

    params: SamplingParams
    clamped: dict[str, int | float]


class _Filter(TypedDict):
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


def engine_params(
    request: SamplingRequest,
    *,
    prompt_tokens: int,
    card: ModelCard,
    defaults: RequestDefaults,
    new_seed: Callable[[], int],
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> EngineParams:
    """Return what to ask of the engine for one prompt.

    `new_seed` gives a signed 64-bit integer; `bad_words` are the request's, in tokens.
    """
    max_tokens, min_tokens, clamped = _lengths(
        request, _room(prompt_tokens, card), _default_max_tokens(card, defaults)
    )
    _check_against(card, request)
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        **_filter(request, card, defaults),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=dict(request.logit_bias),
        seed=new_seed() if request.seed in (None, ANY_SEED) else request.seed,
        stop_token_ids=request.stop_token_ids,
        ignore_eos=request.ignore_eos,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        allowed_token_ids=request.allowed_token_ids,
        bad_words=bad_words,
    )
    return EngineParams(params, clamped)


def defaults_in_force(card: ModelCard, defaults: RequestDefaults) -> dict[str, float]:
    """Return what fills in a request that says nothing, in the engine's terms; `max_tokens` only
    where it is not the room left.
    """
    found = cast("dict[str, float]", dict(_filter(SamplingRequest(), card, defaults)))
    max_tokens = _default_max_tokens(card, defaults)
    return found if max_tokens is None else found | {"max_tokens": max_tokens}


def check_token_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Refuse ids the model has no embedding for."""
    if ids and max(ids) >= vocab_size:
        raise BadRequest(
            f"'{param}' names token {max(ids)}, but the model's ids end at {vocab_size - 1}.",
            param=param,
        )


def clamped_header(clamped: Clamped) -> dict[str, str]:
    """Return `X-Clamped` where something was cut: `max_tokens=512, temperature=1.0`."""
    value = ", ".join(f"{name}={value}" for name, value in clamped.items())
    return {"X-Clamped": value} if value else {}


def _room(prompt_tokens: int, card: ModelCard) -> int:
    """Return how many tokens fit after the prompt: at least one, or the request is refused."""
    if prompt_tokens == 0:
        raise BadRequest("The prompt is empty: it holds no token.", param="prompt")
    room = card.max_model_len - prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(card.max_model_len, prompt_tokens)
    return room


def _lengths(
    request: SamplingRequest, room: int, default: int | None
) -> tuple[int, int, dict[str, int | float]]:
    wanted = default if request.max_tokens is None else request.max_tokens
    max_tokens = room if wanted is None else min(wanted, room)
    min_tokens = min(request.min_tokens, max_tokens)
    clamped: dict[str, int | float] = {}
    if request.max_tokens is not None and max_tokens < request.max_tokens:
        clamped["max_tokens"] = max_tokens
    if min_tokens < request.min_tokens:
        clamped["min_tokens"] = min_tokens
    return max_tokens, min_tokens, clamped


def _default_max_tokens(card: ModelCard, defaults: RequestDefaults) -> int | None:
    models = defaults.of_model(card).get("max_new_tokens")
    return defaults.max_tokens or (None if models is None else int(models))


def _check_against(card: ModelCard, request: SamplingRequest) -> None:
    if request.n > card.max_num_seqs:
        raise BadRequest(
            f"'n' is more than the {card.max_num_seqs} sequences this server runs at once.",
            param="n",
        )
    vocab_size = card.vocab_size
    check_token_ids(list(request.logit_bias), vocab_size, "logit_bias")
    check_token_ids(request.stop_token_ids, vocab_size, "stop_token_ids")
    check_token_ids(request.allowed_token_ids, vocab_size, "allowed_token_ids")
    if request.top_k is not None and request.top_k > vocab_size:
        raise BadRequest(
            f"'top_k' is larger than the vocabulary of {vocab_size} tokens.", param="top_k"
        )


def _filter(request: SamplingRequest, card: ModelCard, defaults: RequestDefaults) -> _Filter:
    """Return fields with defaults in the engine's terms: top_k 0 is off, top_p 0 the best token."""
    models = defaults.of_model(card)

    def first(name: str, neutral: float) -> float:
        ranked = getattr(request, name), getattr(defaults, name), models.get(name)
        return next((value for value in ranked if value is not None), neutral)

    top_p = first("top_p", 1.0)
    return _Filter(
        temperature=first("temperature", 1.0),
        top_p=top_p or 1.0,
        top_k=max(0, int(first("top_k", 0))) if top_p else 1,
        min_p=first("min_p", 0.0),
        repetition_penalty=first("repetition_penalty", 1.0),
    )
