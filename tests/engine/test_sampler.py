"""The sampler against plain references that sort; rows do not see each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.engine.gumbel_noise import MAX_GUMBEL, gumbel, row_key
from workers.engine.sampler import choose_on_gpu, sample
from workers.engine.sampling_rows import SamplingRow
from workers.wire.protocol import SamplingParams

RESTRICTIONS = [
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 600},
    {"top_k": 1500},
    {"top_k": 5000},
    {"top_p": 0.0},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 1e-4},
    {"top_k": 50, "top_p": 0.8},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.02},
    {"top_p": 0.95, "min_p": 0.01},
    {"top_k": 1, "top_p": 0.0, "min_p": 1.0},
    {},
]

VOCAB = 700


def logits_of(rows: int, seed: int = 0, vocab: int = VOCAB, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def row(position: int = 0, choice: int = 0, **params) -> SamplingRow:
    own = {name: params.pop(name) for name in list(params) if name in SamplingRow.__slots__}
    merged = SamplingParams(**({"max_tokens": 9} | params))
    return SamplingRow(merged, choice=choice, position=position, **own)


def allowed(logits: torch.Tensor, *, top_k=0, top_p=1.0, min_p=0.0) -> set[int]:
    """Sort everything, and cut it as transformers does, min_p first."""
    probs, order = logits.softmax(-1).sort(descending=True)
    keep = probs >= min_p * probs[0]
    if top_k:
        keep[top_k:] = False
    probs = probs * keep
    probs = probs / probs.sum()
    keep &= probs.cumsum(-1) - probs < top_p
    keep[0] = True
    return set(order[keep].tolist())


def gumbel_argmax(logits: torch.Tensor, tokens: set[int], seed: int, position: int) -> int:
    low, high = (torch.tensor([word], dtype=torch.int32) for word in row_key(seed, 0, position))
    candidates = torch.tensor(sorted(tokens))
    noise = gumbel(candidates, low, high)
    return int(candidates[(logits[candidates] + noise).argmax()])


def test_temperature_0_is_the_best_token():
    logits = logits_of(5)
    samples = sample(logits.clone(), [row(temperature=0.0) for _ in range(5)])
    assert [s.token_id for s in samples] == logits.argmax(-1).tolist()


@pytest.mark.parametrize("params", RESTRICTIONS)
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_restrictions_equal_a_full_sort(params, spread):
    logits = logits_of(1, seed=3, spread=spread)[0]
    tokens = allowed(logits, **params)
    for position in range(40):
        [drawn] = sample(logits[None].clone(), [row(position, seed=5, **params)])
        assert drawn.token_id == gumbel_argmax(logits, tokens, 5, position)


def test_a_nucleus_wider_than_every_window_is_still_exact():
    logits = logits_of(1, vocab=9000, spread=0.01)[0]
    tokens = allowed(logits, top_p=0.9)
    assert len(tokens) > 2048
    [drawn] = sample(logits[None].clone(), [row(top_p=0.9, seed=1)])
    assert drawn.token_id == gumbel_argmax(logits, tokens, 1, 0)


def test_temperature_divides():
    logits = logits_of(1)[0]
    for temperature in (0.3, 2.5):
        [drawn] = sample(logits[None].clone(), [row(temperature=temperature, seed=8)])
        assert drawn.token_id == gumbel_argmax(logits / temperature, set(range(VOCAB)), 8, 0)


def test_only_allowed_tokens_are_chosen_and_by_the_same_draw():
    logits = logits_of(3, seed=4)
    tokens = {3, 99, 400}
    rows = [row(i, seed=6, allowed_token_ids=(400, 3, 99)) for i in range(2)]
    drawn = sample(logits.clone(), [*rows, row(2, seed=6)])
    for i in range(2):
        assert drawn[i].token_id == gumbel_argmax(logits[i], tokens, 6, i)
    assert drawn[2].token_id == gumbel_argmax(logits[2], set(range(VOCAB)), 6, 2)


def test_a_bad_words_last_token_is_forbidden_behind_its_others():
    logits = logits_of(1, seed=2)
    best, second = logits[0].topk(2).indices.tolist()
    word = {"bad_words": ((7, 8, best),), "temperature": 0.0}
    for output, chosen in {(7, 8): second, (5, 7, 8): second, (8,): best, (7, 9): best}.items():
        assert sample(logits.clone(), [row(**word, last_output=output)])[0].token_id == chosen
    [only] = sample(logits.clone(), [row(bad_words=((best,), (best,)), temperature=0.0)])
    assert only.token_id == second


def test_where_everything_is_forbidden_a_token_is_chosen_all_the_same():
    logits = logits_of(1)
    forbidding = {"allowed_token_ids": (5,), "bad_words": ((5,),)}
    for params in ({"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}, {}):
        [drawn] = sample(logits.clone(), [row(**forbidding, **params)])
        assert 0 <= drawn.token_id < VOCAB


def test_bias_forces_and_forbids():
    logits = logits_of(2)
    best = int(logits[1].argmax())
    rows = [
        row(temperature=0.0, logit_bias={17: 100.0}),
        row(temperature=0.0, logit_bias={best: -100.0}),
    ]
    samples = sample(logits.clone(), rows)
    assert samples[0].token_id == 17
    assert samples[1].token_id == int(logits[1].topk(2).indices[1])


def test_stops_are_masked_until_min_tokens():
    logits = logits_of(1)
    best = int(logits.argmax())
    for num_output, expected in ((2, False), (3, True)):
        stopping = row(
            temperature=0.0, min_tokens=3, num_output=num_output, stop_ids=frozenset([best])
        )
        [drawn] = sample(logits.clone(), [stopping])
        assert (drawn.token_id == best) is expected


def test_penalties_follow_their_formulas():
    logits = logits_of(1)[0]
    order = logits.argsort(descending=True).tolist()
    counts = {token: index + 1 for index, token in enumerate(order[:4])}
    penalized = row(
        temperature=0.0,
        repetition_penalty=1.5,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        prompt_set=np.array(order[2:8]),
        output_counts=counts,
    )
    expected = logits.clone()
    for token in {*order[2:8], *counts}:
        expected[token] = expected[token] * 1.5 if expected[token] < 0 else expected[token] / 1.5
    for token, count in counts.items():
        expected[token] -= 0.4 + 0.3 * count
    processed = logits[None].clone()
    [drawn] = sample(processed, [penalized])
    torch.testing.assert_close(processed[0], expected)
    assert drawn.token_id == int(expected.argmax())


def test_logprobs_are_of_the_raw_logits():
    logits = logits_of(3)
    raw = logits.log_softmax(-1)
    rows = [
        row(temperature=0.0, logprobs=0, logit_bias={4: 100.0}),
        row(temperature=0.7),
        row(temperature=0.7, logprobs=20),
    ]
    first, second, third = sample(logits.clone(), rows)
    assert first.logprob.token_id == 4 and first.logprob.top_ids == ()
    assert first.logprob.logprob == pytest.approx(float(raw[0, 4]), abs=1e-5)
    assert second.logprob is None
    assert list(third.logprob.top_ids) == raw[2].topk(20).indices.tolist()
    assert third.logprob.top_logprobs == pytest.approx(raw[2].topk(20).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("params", [{}, {"top_k": 8}, {"top_p": 0.9999}])
def test_frequencies_equal_probabilities(params):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    draws = 20_000
    rows = [row(position, seed=77, **params) for position in range(draws)]
    tokens = torch.tensor([s.token_id for s in sample(logits.expand(draws, -1).clone(), rows)])
    expected = logits.softmax(-1) * draws
    observed = tokens.bincount(minlength=6)
    # 5 degrees of freedom: 20.5 is exceeded once in a thousand seeds.
    assert float(((observed - expected) ** 2 / expected).sum()) < 20.5


def test_noise_is_bounded_and_depends_on_every_part_of_its_key():
    tokens = torch.arange(200_000)
    keys = [row_key(s, c, p) for s, c, p in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len(set(keys)) == 4
    noise = [
        gumbel(tokens, *(torch.tensor(word, dtype=torch.int32) for word in key)) for key in keys
    ]
    for one in noise:
        assert float(one.max()) < MAX_GUMBEL
        assert float(one.mean()) == pytest.approx(0.5772, abs=0.01)
        assert float(one.var()) == pytest.approx(1.6449, abs=0.03)
    correlation = torch.corrcoef(torch.stack(noise)) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.01


def test_the_noise_is_the_documented_hash():
    def murmur(x: int) -> int:
        x = (x ^ x >> 16) * 0x85EBCA6B & 0xFFFFFFFF
        x = (x ^ x >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        return x ^ x >> 16

    low, high = row_key(123456789, 2, 40)
    for token in (0, 1, 151_935):
        bits = murmur((token * 0x9E3779B1 + low) & 0xFFFFFFFF)
        bits = murmur(bits ^ high & 0xFFFFFFFF)
        uniform = torch.tensor((bits >> 8) + 0.5, dtype=torch.float32) * 2.0**-24
        words = (torch.tensor(word, dtype=torch.int32) for word in (low, high))
        assert torch.equal(gumbel(torch.tensor(token), *words), -(-(-uniform).log1p()).log())


# Seeds and tokens at position 10 whose upper 24 bits are all ones: one draw in 2**24.
LAST_DRAWS = [(11374, 13), (15528, 138), (23487, 308), (100152, 42), (105764, 9), (152107, 150)]


@pytest.mark.parametrize(("seed", "token"), LAST_DRAWS)
@pytest.mark.parametrize("params", [{}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.1}])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_certain_token_wins_with_the_least_of_all_noise(seed, token, params, on_gpu):
    low, high = (torch.tensor(word, dtype=torch.int32) for word in row_key(seed, 0, 10))
    noise = gumbel(torch.arange(VOCAB), low, high)
    assert noise.isfinite().all()
    assert float(noise[token]) == pytest.approx(-math.log(24 * math.log(2)))
    logits = torch.full((1, VOCAB), -1e4)
    logits[0, token] = 1e4
    certain = [row(10, temperature=1.0, seed=seed, **params)]
    if on_gpu:
        assert choose_on_gpu(logits, certain, by_kernels=False).tolist() == [token]
    else:
        assert [drawn.token_id for drawn in sample(logits, certain)] == [token]


def test_all_other_noise_is_as_it_always_was():
    """As the formula gives it without a bound, whose last number alone rounds to 1."""
    tokens = torch.arange(1 << 20)
    for seed in range(4):
        low, high = (torch.tensor(word, dtype=torch.int32) for word in row_key(seed, 0, 0))
        uniform = torch.tensor(bits_of(tokens, low, high)).add(0.5).mul(2.0**-24)
        unbounded = -(-(-uniform).log1p()).log()
        differs = gumbel(tokens, low, high) != unbounded
        assert not differs[uniform < 1].any()


def bits_of(tokens: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> list[float]:
    """Return the upper 24 bits of the documented hash, by numpy's uint32."""
    first, second = (np.uint32(int(key) & 0xFFFFFFFF) for key in (low, high))
    word = murmur(tokens.numpy().astype(np.uint32) * np.uint32(0x9E3779B1) + first)
    return (murmur(word ^ second) >> np.uint32(8)).astype(np.float32).tolist()


def murmur(word: np.ndarray) -> np.ndarray:
    word = (word ^ word >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    word = (word ^ word >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return word ^ word >> np.uint32(16)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [slice(5, 6), slice(None)])
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.2},
        {"logit_bias": {5: 100.0}},
        {"temperature": 1.0},
        {"top_k": 5, "logprobs": 2},
        {"top_p": 0.5},
        {"min_p": 0.1},
    ],
)
def test_rows_whose_logits_are_not_finite_are_told(number, where, params):
    logits = logits_of(3)
    logits[1, where] = number
    found = sample(logits, [row(**({"temperature": 1.0} | params)) for _ in range(3)])
    # One forbidden token is nothing wrong, nothing but forbidden ones is.
    is_finite = number == -math.inf and where != slice(None)
    assert [drawn.is_finite for drawn in found] == [True, is_finite, True]
    assert found[1].is_finite or found[1].logprob is None


ROWS = st.builds(
    row,
    position=st.integers(0, 9),
    choice=st.integers(0, 2),
    seed=st.integers(-(2**63), 2**63 - 1),
    temperature=st.sampled_from([0.0, 0.2, 1.0, 1.9]),
    top_k=st.sampled_from([0, 0, 1, 5, 40, 300, 2000]),
    top_p=st.sampled_from([1.0, 1.0, 0.0, 0.5, 0.97]),
    min_p=st.sampled_from([0.0, 0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    logprobs=st.sampled_from([None, None, 0, 5]),
    logit_bias=st.sampled_from([{}, {}, {3: 2.0}]),
    prompt_set=st.just(np.array([1, 2, 3])),
    output_counts=st.just({5: 2, 6: 1}),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(ROWS, min_size=2, max_size=12), st.integers(0, 50), st.booleans())
def test_a_row_is_independent_of_the_others(rows, seed, halved):
    logits = logits_of(len(rows), seed, vocab=2500)
    if halved:
        logits = logits.bfloat16()  # many equal values
    together = sample(logits.clone(), rows)
    for index, one in enumerate(rows):
        assert sample(logits[index : index + 1].clone(), [one]) == [together[index]]
