"""What the current request is: its profile and key, its stream and metrics, all in Flask's `g`."""

from collections.abc import Sequence
from typing import Any

from flask import g, request

from qwenapi.engines.client import random_seed
from qwenapi.errors import ApiError, BadRequest, ContextLengthExceeded
from qwenapi.generation.request import GenerationRequest
from qwenapi.generation.sampling import Clamped, SamplingRequest, defaults_of, engine_params
from qwenapi.generation.stream import GenerationStream
from qwenapi.http.schemas import RequestSchema, ignored_fields, load_request, refuse_unknown
from qwenapi.keys import Key
from qwenapi.metrics.store import RequestMetrics
from qwenapi.request_context.clamp import clamp
from qwenapi.request_context.services import services
from qwenapi.settings.profile import Profile
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.grammar import Grammar
from workers.wire.protocol import Image, ModelCard, Pooling, SamplingParams


def use_profile(profile: Profile) -> None:
    """Serve the current request as this profile says, its errors included."""
    g.profile = profile


def current_profile() -> Profile:
    """Return the profile of the current request; before one was chosen, the general one."""
    chosen: Profile | None = g.get("profile")
    return chosen or services().profiles.unread


def caller() -> Key:
    """Return the key of the current request, ANYONE's where none are asked for."""
    key: Key = g.key
    return key


def count_request() -> None:
    """Count the current request against its key's limit, once its dialect is known."""
    g.rate_limit.count_request()


def choose_profile(body: dict[str, Any]) -> None:
    """Let the profile of the model that a body names answer, count the request, and cut what the
    profile documents as cut: `g.clamped` has what became of it.
    """
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        return  # the schema says what is wrong with it
    profile = services().profiles.for_model(name, caller().models)
    use_profile(profile)
    count_request()
    if name is None and profile.requires_model:
        raise BadRequest("'model' is required.", param="model", kind="missing")
    g.clamped = clamp(body, profile) if profile.clamp else {}


def count_post() -> None:
    """Hold a POST, whose profile its address has chosen, against its key's models and limit."""
    if request.method == "POST":
        services().profiles.check_model(current_profile(), caller().models)
        count_request()


def load_body(schema: RequestSchema, body: dict[str, Any]) -> Any:
    """Return the value of the current request's body. What the schema does not know is refused
    where the profile says so, else ignored, counted in the log and named in the answer.
    """
    if current_profile().unknown_fields == "refuse":
        refuse_unknown(schema, body)
    g.ignored = list(ignored_fields(schema, body))
    if g.ignored:
        g.log.add(ignored_fields=len(g.ignored))
    return load_request(schema, body)


def generation_request(
    ask: SamplingRequest,
    prompts: Sequence[list[int]],
    card: ModelCard,
    max_tokens: int = 0,
    *,
    grammar: Grammar | None = None,
    by_token: bool = False,
    bad_words: tuple[tuple[int, ...], ...] = (),
    images: tuple[Image, ...] = (),
) -> tuple[GenerationRequest, Clamped]:
    """Return what to ask of the engines for the current request, and what had to be cut for it.

    `max_tokens` is for a request without, where no setting has it either; 0: the room left.
    """
    profile = current_profile()
    defaults = defaults_of(profile.settings, max_tokens)
    cut: dict[str, int | float] = {}
    asked = []
    for ids in prompts:
        params, clamped = engine_params(
            ask,
            prompt_tokens=len(ids),
            card=card,
            defaults=defaults,
            new_seed=random_seed,
            bad_words=bad_words,
        )
        asked.append((ids, params))
        cut |= clamped
    wanted = GenerationRequest(
        prompts=asked,
        model_hash=card.model_hash,
        request_id=g.request_id,
        n=ask.n,
        priority=ask.priority,
        stops=ask.stop,
        skip_special_tokens=ask.skip_special_tokens,
        includes_stop=ask.include_stop_str_in_output,
        cache_salt=ask.cache_salt,
        limits=profile.limits,
        grammar=grammar,
        by_token=by_token or ask.return_token_ids,
        images=images,
    )
    return wanted, cut


def pooling_request(
    prompts: Sequence[list[int]],
    card: ModelCard,
    pooling: Pooling,
    *,
    priority: int | None = None,
    cache_salt: str = "",
) -> GenerationRequest:
    """Return what to ask of the engines for prompts that are not gone on with."""
    for ids in prompts:
        if len(ids) > card.max_model_len:
            raise ContextLengthExceeded(card.max_model_len, len(ids), is_answered=False)
    params = SamplingParams(max_tokens=1)
    return GenerationRequest(
        prompts=[(ids, params) for ids in prompts],
        model_hash=card.model_hash,
        request_id=g.request_id,
        priority=priority,
        cache_salt=cache_salt,
        limits=current_profile().limits,
        pooling=pooling,
    )


def new_stream(tokenizer: Tokenizer, *, outlives_caller: bool = False) -> GenerationStream:
    """Return a stream for the current request, which counts in the metrics from now on. It ends
    with its caller's connection, unless it `outlives_caller`.
    """
    metrics = g.request_metrics = _begin_metrics()
    environ = {} if outlives_caller else request.environ
    return GenerationStream(services().engine, tokenizer, metrics, g.rate_limit, environ)


def count_failure(error: ApiError) -> None:
    """Count a request that the service failed to answer, whether or not it got to an engine."""
    metrics: RequestMetrics = g.get("request_metrics") or _begin_metrics()
    metrics.accept(0)
    metrics.fail(error.name)


def _begin_metrics() -> RequestMetrics:
    return services().metrics_store.begin(current_profile().name, g.log.arrival)
