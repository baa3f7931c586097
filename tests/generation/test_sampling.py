from typing import Any

import pytest

from qwenapi.api.openai.schemas import SamplingRequest
from qwenapi.errors import BadRequest, ContextLengthExceeded
from qwenapi.generation.sampling import (
    EngineParams,
    RequestDefaults,
    check_token_ids,
    clamped_header,
    defaults_of,
    engine_params,
)
from qwenapi.settings.sources import load
from workers.errors import ConfigError
from workers.wire.protocol import ModelCard, SamplingParams

CARD = ModelCard(
    model_dir="/m", model_hash="h", tokenizer_sha256="s", architecture="Qwen3ForCausalLM",
    max_model_len=100, vocab_size=1000, eos_token_ids=(7,), generation_config={}, dtype="float32",
    device="cpu", block_size=32, num_blocks=64, max_num_seqs=8, max_num_batched_tokens=512,
)  # fmt: skip
TUNED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20.0, "repetition_penalty": 1.05}


def ask(
    prompt_tokens: int = 10,
    *,
    generation_config: dict[str, float] | None = None,
    defaults: RequestDefaults | None = None,
    **request: Any,
) -> EngineParams:
    card = CARD
    if generation_config:
        fields = {name: getattr(CARD, name) for name in CARD.__struct_fields__}
        card = ModelCard(**(fields | {"generation_config": generation_config}))
    return engine_params(
        SamplingRequest(**request),
        prompt_tokens=prompt_tokens,
        card=card,
        defaults=defaults or RequestDefaults(),
        new_seed=lambda: 42,
    )


def test_silence_is_neutral_and_seeded() -> None:
    assert ask() == (SamplingParams(max_tokens=90, seed=42), {})


def test_everything_asked_arrives() -> None:
    params, clamped = ask(
        max_tokens=5, min_tokens=2, temperature=0.0, top_p=0.5, top_k=9, min_p=0.1,
        repetition_penalty=1.5, presence_penalty=0.3, frequency_penalty=0.4, logit_bias={3: 1.0},
        seed=-2, stop_token_ids=(4,), ignore_eos=True, logprobs=3,
    )  # fmt: skip
    assert clamped == {}
    assert params == SamplingParams(
        max_tokens=5, min_tokens=2, temperature=0.0, top_p=0.5, top_k=9, min_p=0.1,
        repetition_penalty=1.5, presence_penalty=0.3, frequency_penalty=0.4, logit_bias={3: 1.0},
        seed=-2, stop_token_ids=(4,), ignore_eos=True, logprobs=3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seed", "used"), [(None, 42), (-1, 42), (-2, -2), (0, 0), (1, 1), (-(2**63), -(2**63))]
)
def test_a_seed_of_minus_one_is_none_and_any_other_is_fixed(seed: int | None, used: int) -> None:
    assert ask(seed=seed).params.seed == used


def test_without_max_tokens_the_profile_says_or_the_room_left() -> None:
    def given(**flags: Any) -> int:
        settings = load({"profile": "openai", **flags}, {})
        return ask(defaults=defaults_of(settings, max_tokens=16)).params.max_tokens

    assert given() == 16
    assert given(defaults_max_tokens=7) == 7
    assert ask(defaults=RequestDefaults()).params.max_tokens == 90
    assert ask(defaults=RequestDefaults(max_tokens=4096)).params.max_tokens == 90


def test_a_models_own_defaults_may_be_left_out() -> None:
    settings = load({"profile": "openai", "generation_config": "vllm"}, {})
    params = ask(generation_config=TUNED, defaults=defaults_of(settings)).params
    assert (params.temperature, params.top_p, params.top_k) == (1.0, 1.0, 0)
    assert params.repetition_penalty == 1.0
    settings = load({"profile": "openai"}, {})
    assert ask(generation_config=TUNED, defaults=defaults_of(settings)).params.temperature == 0.6


def test_a_setting_goes_before_the_models_own_defaults() -> None:
    said = '{"temperature": 0.3, "top_k": -1, "max_new_tokens": 12}'
    settings = load({"profile": "openai", "override_generation_config": said}, {})
    params = ask(generation_config=TUNED, defaults=defaults_of(settings)).params
    assert (params.temperature, params.top_p, params.top_k) == (0.3, 0.95, 0)
    assert params.max_tokens == 12
    without = {"profile": "openai", "generation_config": "vllm"}
    settings = load(without | {"override_generation_config": said}, {})
    params = ask(generation_config=TUNED, defaults=defaults_of(settings)).params
    assert (params.temperature, params.top_p, params.repetition_penalty) == (0.3, 1.0, 1.0)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"temprature": 1}', "'temprature' is no sampling field; there are temperature, top_p"),
        ('{"top_p": 2}', "top_p is 2, not a number from 0 to 1; mend the setting"),
        ('{"max_new_tokens": 1.5}', "max_new_tokens is 1.5, not a whole number from 1"),
    ],
)
def test_defaults_that_are_set_wrongly_end_a_start(said: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load({"profile": "openai", "override_generation_config": said}, {})


def test_the_models_length_holds_where_nobody_says_another() -> None:
    models = TUNED | {"max_new_tokens": 20.0}
    assert ask(generation_config=models).params.max_tokens == 20
    assert ask(generation_config=models, max_tokens=50).params.max_tokens == 50
    profile = RequestDefaults(max_tokens=16)
    assert ask(generation_config=models, defaults=profile).params.max_tokens == 16
    assert ask(85, generation_config=models).params.max_tokens == 15
    ignored = RequestDefaults(has_model_defaults=False)
    assert ask(generation_config=models, defaults=ignored).params.max_tokens == 90


def test_the_request_wins_over_the_profile_and_the_profile_over_the_model() -> None:
    profile = RequestDefaults(temperature=0.0, top_p=0.8)
    params, _ = ask(generation_config=TUNED, defaults=profile, top_p=0.5)
    chosen = (params.temperature, params.top_p, params.top_k, params.repetition_penalty)
    assert chosen == (0.0, 0.5, 20, 1.05)
    assert isinstance(params.top_k, int)


@pytest.mark.parametrize("off", [-1, 0])
def test_top_k_can_be_turned_off(off: int) -> None:
    assert ask(generation_config=TUNED, top_k=off).params.top_k == 0


def test_top_p_zero_is_the_single_best_token() -> None:
    params, _ = ask(generation_config=TUNED, top_p=0.0)
    assert (params.top_p, params.top_k) == (1.0, 1)


@pytest.mark.parametrize(
    ("prompt_tokens", "asked", "limit", "got", "clamped"),
    [
        (10, 90, 4096, 90, {}),
        (10, 91, 4096, 90, {"max_tokens": 90}),
        (10, 2**63, 4096, 90, {"max_tokens": 90}),
        (99, 16, 4096, 1, {"max_tokens": 1}),
        (10, None, 4096, 90, {}),
        (10, None, 16, 16, {}),
        (99, None, 16, 1, {}),
    ],
)
def test_an_answer_is_cut_to_the_room_left(
    prompt_tokens: int, asked: int | None, limit: int, got: int, clamped: dict[str, int]
) -> None:
    result = ask(prompt_tokens, max_tokens=asked, defaults=RequestDefaults(max_tokens=limit))
    assert (result.params.max_tokens, result.clamped) == (got, clamped)


def test_min_tokens_is_cut_with_it() -> None:
    params, clamped = ask(95, max_tokens=50, min_tokens=20)
    assert (params.max_tokens, params.min_tokens) == (5, 5)
    assert clamped_header(clamped) == {"X-Clamped": "max_tokens=5, min_tokens=5"}
    assert clamped_header({}) == {}


@pytest.mark.parametrize("prompt_tokens", [100, 101, 10**6])
def test_a_prompt_that_does_not_fit_is_refused(prompt_tokens: int) -> None:
    with pytest.raises(ContextLengthExceeded, match=f"100 tokens, the prompt has {prompt_tokens}"):
        ask(prompt_tokens)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(BadRequest, match="empty"):
        ask(0)


@pytest.mark.parametrize(
    ("request_fields", "param"),
    [
        ({"logit_bias": {5: 1.0, 1000: 1.0}}, "logit_bias"),
        ({"stop_token_ids": (999, 1000)}, "stop_token_ids"),
        ({"top_k": 1001}, "top_k"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(request_fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        ask(**request_fields)
    assert caught.value.param == param


def test_prompt_ids_are_checked_by_name() -> None:
    check_token_ids((0, 999), 1000, "prompt")
    check_token_ids((), 1000, "prompt")
    with pytest.raises(BadRequest, match=r"'prompt' names token 1000, but .* end at 999"):
        check_token_ids((1000,), 1000, "prompt")
