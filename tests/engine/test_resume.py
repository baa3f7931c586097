"""An answer cut anywhere and gone on with on another engine is the undisturbed one, in float32."""

import pytest

NEW_TOKENS = 24
DRAWN = {"temperature": 1.0, "top_p": 0.95, "seed": 11}
KINDS = {
    "the best": {},
    "drawn": DRAWN | {"top_k": 40, "min_p": 0.01},
    "penalized": DRAWN
    | {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    "biased": DRAWN | {"logit_bias": {7: 3.0, 9: -100.0}, "logprobs": 3},
    "stopped late": DRAWN | {"min_tokens": 9, "stop_token_ids": tuple(range(4, 300, 3))},
    "stopped by the model": DRAWN | {"min_tokens": 3, "ignore_eos": False, "logit_bias": {2: 4.0}},
}


@pytest.fixture(params=["qwen2", "qwen3", "qwen3_moe"])
def name(request):
    return request.param


def ends(driver, key, choice=0):
    return [(c.finish_reason, c.stop_token_id) for c in driver.chunks[key] if c.choice == choice][
        -1
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_cut_at_any_token_goes_on_as_if_nothing_had_happened(drive, prompts, name, kind):
    [prompt] = prompts(1)
    params = {"max_tokens": NEW_TOKENS} | KINDS[kind]
    whole = drive(name)
    whole.add(0, prompt, **params)
    tokens = whole.run().tokens(0)
    if kind.startswith("stopped"):
        assert params["min_tokens"] < len(tokens) < NEW_TOKENS, "the seed shows nothing"

    successor = drive(name)
    for cut in range(len(tokens)):
        successor.add(cut, prompt, **params, resume=(tuple(tokens[:cut]),))
    successor.run()
    for cut in range(len(tokens)):
        assert successor.tokens(cut) == tokens[cut:], cut
        assert successor.chunks[cut][0].position == cut
        assert ends(successor, cut) == ends(whole, 0)
        assert successor.finished[cut].completion_tokens == len(tokens)


def test_choices_that_are_left_keep_their_own_noise(drive, prompts, name):
    [prompt] = prompts(1)
    params = DRAWN | {"max_tokens": NEW_TOKENS}
    whole = drive(name)
    whole.add(0, prompt, **params, choices=(0, 1, 2, 3))
    whole.run()
    left, given = (1, 3), (5, 17)
    resume = tuple(
        tuple(whole.tokens(0, choice)[:count]) for choice, count in zip(left, given, strict=True)
    )
    successor = drive(name)
    successor.add(0, prompt, **params, choices=left, resume=resume)
    successor.run()
    for choice, count in zip(left, given, strict=True):
        assert successor.tokens(0, choice) == whole.tokens(0, choice)[count:]
    assert successor.finished[0].prompt_tokens == len(prompt)
