"""The sampling kernels choose the tokens of top_p_sampling_gpu.py, which is held to sorting.

Small vocabularies are cut into small tiles, so that there are many; scratch lies between fences.
"""

import random
from collections.abc import Iterator
from math import prod

import pytest
import torch
from torch import Tensor

from tests.engine.test_sampler import LAST_DRAWS, logits_of, row
from tests.kernels.conftest import DEVICE
from tests.kernels.hopper import run
from workers.engine import sampler, top_p_sampling_gpu
from workers.engine.gumbel_noise import gumbel, row_key
from workers.engine.sampling_rows import SamplingRow, SamplingTensors

pytest.importorskip("triton", reason="kernels need the package triton")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from workers.model.kernels import sampling  # noqa: E402

FENCE = 4096


@pytest.fixture(autouse=True)
def fenced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let new_empty return NaN and -7s, and see that nothing before or behind them is written."""
    new_empty, made = torch.Tensor.new_empty, []

    def new_fenced(self: Tensor, size: int | tuple[int, ...], **kwargs: object) -> Tensor:
        dtype = kwargs.get("dtype")
        if dtype is None:  # the interpreter's own
            return new_empty(self, size, **kwargs)
        shape = (size,) if isinstance(size, int) else size
        poison = torch.nan if dtype.is_floating_point else -7
        whole = new_empty(self, prod(shape) + 2 * FENCE, dtype=dtype).fill_(poison)
        made.append(torch.cat([whole[:FENCE], whole[-FENCE:]]).clone())
        made.append(whole)
        return whole[FENCE:-FENCE].view(shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_fenced)
    yield
    for before, whole in zip(made[::2], made[1::2], strict=True):
        after = torch.cat([whole[:FENCE], whole[-FENCE:]])
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


def cut(monkeypatch: pytest.MonkeyPatch, segment: int, tile: int) -> None:
    monkeypatch.setattr(sampling, "_SEGMENT", segment)
    monkeypatch.setattr(sampling, "_TILE", tile)
    monkeypatch.setattr(sampling, "_NUM_WARPS", 1)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, segment=16, tile=8)


def by_kernels(logits: Tensor, rows: list[SamplingRow]) -> list[int]:
    return _choose(logits, rows, has_kernels=True)


def by_torch(logits: Tensor, rows: list[SamplingRow]) -> list[int]:
    return _choose(logits, rows, has_kernels=False)


def _choose(logits: Tensor, rows: list[SamplingRow], has_kernels: bool) -> list[int]:
    return sampler.choose_on_gpu(logits.to(DEVICE), rows, by_kernels=has_kernels).tolist()


def random_row(chance: random.Random, vocab: int) -> SamplingRow:
    return row(
        chance.randrange(99),
        seed=chance.randrange(2**63),
        temperature=chance.choice([0.0, 1e-5, 0.3, 1.0, 5.0]),
        top_k=chance.choice([0, 0, 1, 20, vocab]),
        top_p=chance.choice([1.0, 1.0, 0.0, 0.05, 0.5, 0.95]),
        min_p=chance.choice([0.0, 0.0, 1e-4, 0.1, 1.0]),
    )


@pytest.mark.parametrize(
    ("vocab", "segment", "tile"),
    [(320, 16, 8), (333, 4, 8), (400, 16, 8), (700, 8, 32), (5000, 128, 32)],
)
def test_tokens_equal_those_of_torch(vocab, segment, tile, monkeypatch):
    cut(monkeypatch, segment, tile)
    chance = random.Random(vocab)
    rows = [random_row(chance, vocab) for _ in range(12)]
    logits = logits_of(len(rows), vocab, vocab, spread=chance.choice([0.1, 3.0]))
    assert by_kernels(logits, rows) == by_torch(logits, rows)


@triton.jit
def _find_one(
    threshold, logits, peaks, listed, k, p, m, vocab_size, num_segments,
    SEGMENT: tl.constexpr, TILE: tl.constexpr, PADDED_SEGMENTS: tl.constexpr,
):  # fmt: skip
    segment = tl.arange(0, PADDED_SEGMENTS)
    peak = tl.load(peaks + segment, mask=segment < num_segments, other=float("-inf"))
    found = sampling._find_threshold(
        logits, 1.0, peak, listed, tl.load(k), tl.load(p), tl.load(m), vocab_size, SEGMENT, TILE
    )
    tl.store(threshold, found)


@pytest.mark.parametrize("kind", ["random", "coarse", "zeros"])
@pytest.mark.parametrize("top_k", [0, 2, 60])
def test_what_a_row_may_draw_is_what_torch_allows(top_k, kind, monkeypatch):
    monkeypatch.setattr(sampling, "_FIRST_LISTED", tl.constexpr(3))
    chance = random.Random(f"{top_k} {kind}")
    for top_p in (1.0, chance.choice([0.0, 0.3]), chance.choice([0.95, 0.9999])):
        min_p = chance.choice([0.0, 0.01, 0.5])
        logits = logits_of(1, chance.randrange(99), vocab=480, spread=chance.choice([0.5, 3]))
        if kind == "coarse":
            logits = logits.round()
        elif kind == "zeros":
            logits = logits.sign() * (logits > 2 * logits.std())  # some of them negative
        logits = logits.to(DEVICE)
        k, p, m = (torch.tensor([x], device=DEVICE) for x in (top_k, top_p, min_p))
        listed = torch.zeros(60, dtype=torch.int32, device=DEVICE)
        threshold = torch.full((1,), torch.nan, device=DEVICE)
        _find_one[(1,)](
            threshold, logits, logits.view(-1, 8).amax(1), listed, k, p, m, 480, 60,
            SEGMENT=8, TILE=4, PADDED_SEGMENTS=64,
        )  # fmt: skip
        params = SamplingTensors(k, k, p, m, k, k)
        allowed = top_p_sampling_gpu.allow(logits, params, has_top_k=True, has_top_p=True)
        assert torch.equal(logits >= threshold, allowed)


RESTRICTIONS = [
    {"top_k": 20, "top_p": 0.95},
    {"top_k": 3, "min_p": 0.9},
    {"top_p": 0.95, "temperature": 5.0},
    {"top_p": 0.3, "min_p": 1e-4},
    {"top_k": 400},
]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("kind", ["coarse", "equal", "forbidden", "one", "zeros", "none"])
def test_equal_and_forbidden_logits_are_treated_as_torch_treats_them(kind):
    rows = [row(position, seed=4, **params) for position, params in enumerate(RESTRICTIONS)]
    rows += [row(seed=4, temperature=0.0), row(9, seed=4)]
    logits = logits_of(len(rows), seed=6, vocab=400)
    if kind == "coarse":
        logits = logits.round()
    elif kind == "equal":
        logits[:] = -2.5
    elif kind == "forbidden":
        logits[:, :390] = float("-inf")
    elif kind == "one":
        logits[:, torch.arange(400) != 217] = float("-inf")
    elif kind == "zeros":
        logits = logits.sign() * 0.0  # some of them negative
    else:
        logits[:] = float("-inf")
    assert by_kernels(logits, rows) == by_torch(logits, rows)


@pytest.mark.usefixtures("small_tiles")
def test_of_equal_scores_the_first_tokens_wins():
    rows = [row(seed=1, temperature=1e-5, top_k=top_k) for top_k in (0, 400)]
    logits = torch.full((2, 400), 1e5)  # divided by the temperature, it swallows all noise
    logits[:, :37] = 0.0
    assert by_kernels(logits, rows) == [37, 37]


def test_a_real_vocabulary_in_bfloat16_draws_as_torch_does():
    rows = [row(seed=1, top_k=20, top_p=0.95), row(seed=2, temperature=0.8)]
    logits = logits_of(len(rows), seed=8, vocab=151_936).bfloat16()
    assert by_kernels(logits, rows) == by_torch(logits.float(), rows)


@pytest.mark.usefixtures("small_tiles")
def test_a_nucleus_wider_than_the_first_list_is_still_exact(monkeypatch):
    monkeypatch.setattr(sampling, "_FIRST_LISTED", tl.constexpr(2))
    logits = logits_of(4, seed=5, vocab=700, spread=2.0)
    rows = [row(seed=3, top_p=top_p) for top_p in (0.2, 0.6, 0.9, 0.9999)]
    assert by_kernels(logits, rows) == by_torch(logits, rows)


@pytest.mark.usefixtures("small_tiles")
def test_a_row_is_independent_of_the_others():
    chance = random.Random(3)
    rows = [random_row(chance, 400) for _ in range(5)]
    logits = logits_of(len(rows), seed=2, vocab=400).bfloat16()
    together = by_kernels(logits, rows)
    for index, one in enumerate(rows):
        assert by_kernels(logits[index : index + 1], [one]) == together[index : index + 1]


def test_rows_of_a_wider_tensor_are_read_where_they_lie():
    rows = [row(seed=1), row(seed=1, top_p=0.9), row(temperature=0.0)]
    wide = torch.full((3, 1000), 99.0, device=DEVICE)
    wide[:, 100:500] = logits_of(3, vocab=400).to(DEVICE)
    assert by_kernels(wide[:, 100:500], rows) == by_torch(wide[:, 100:500], rows)


def test_frequencies_equal_probabilities():
    logits = torch.full((120, 300), float("-inf"))
    logits[:, [3, 150, 299]] = torch.tensor([0.5, 0.3, 0.2]).log()
    rows = [row(place, seed=7, top_k=place % 2 * 5) for place in range(120)]
    tokens = torch.tensor(by_kernels(logits, rows))
    expected = torch.tensor([60, 36, 24])
    observed = tokens.bincount(minlength=300)[[3, 150, 299]]
    assert int(observed.sum()) == 120
    # 2 degrees of freedom: 13.8 is exceeded once in a thousand seeds.
    assert float(((observed - expected) ** 2 / expected).sum()) < 13.8


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.usefixtures("small_tiles")
def test_broken_logits_still_give_a_token_of_the_vocabulary(number):
    rows = [row(temperature=0.0), row(), row(top_k=5, top_p=0.9), row(top_p=0.5), row(min_p=0.1)]
    tokens = by_kernels(torch.full((5, 400), number), rows)
    assert all(0 <= token < 400 for token in tokens)


@triton.jit
def _fill_with_noise(noise, low, high, COUNT: tl.constexpr):
    token = tl.arange(0, COUNT)
    tl.store(noise + token, sampling._gumbel(token, tl.load(low), tl.load(high)))


def test_noise_is_that_of_the_engine():
    low, high = torch.tensor([[-123_456_789], [987_654_321]], dtype=torch.int32, device=DEVICE)
    noise = torch.full((1 << 17,), torch.nan, device=DEVICE)
    _fill_with_noise[(1,)](noise, low, high, COUNT=1 << 17)
    expected = gumbel(torch.arange(1 << 17, device=DEVICE), low, high)
    assert float(expected.max()) > 11  # where a logarithm of 1 - uniform would be of few bits
    torch.testing.assert_close(noise, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("seed", "token"), LAST_DRAWS[:3])
def test_the_last_of_all_draws_has_the_least_noise(seed, token):
    words = [
        torch.tensor([word], dtype=torch.int32, device=DEVICE) for word in row_key(seed, 0, 10)
    ]
    noise = torch.full((512,), torch.nan, device=DEVICE)
    _fill_with_noise[(1,)](noise, *words, COUNT=512)
    assert noise.isfinite().all()
    torch.testing.assert_close(noise[token], gumbel(torch.tensor(token, device=DEVICE), *words)[0])
    logits = torch.full((1, 700), -1e4, device=DEVICE)
    logits[0, token] = 1e4
    for params in ({}, {"top_k": 1}, {"top_p": 0.5}):
        assert by_kernels(logits, [row(10, temperature=1.0, seed=seed, **params)]) == [token]


@triton.jit
def _sum_weights(total, logits, temperature, listed, vocab_size):
    amount, _, _ = sampling._look(
        logits, tl.load(temperature), listed, 1, -9.0, 9.0, vocab_size, True, 128, 32
    )
    tl.store(total, amount)


def test_probabilities_are_summed_in_whole_steps():
    logits = logits_of(1, vocab=100).to(DEVICE)
    listed = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    total = torch.full((1,), torch.nan, dtype=torch.float64, device=DEVICE)
    _sum_weights[(1,)](total, logits, torch.ones(1, device=DEVICE), listed, 100)
    weights = (logits[logits > -9.0] - 9.0).double().exp()
    assert float(total) == float(total.round())
    torch.testing.assert_close(total / 2**35, weights.sum()[None], rtol=1e-5, atol=0)


# Compiles the kernels for a vocabulary of 151,936, and prints what the assembler says of each.
PROGRAM = """
import json
from tests.kernels.hopper import build
from workers.model.kernels import sampling

types = {"logits": "*bf16", "tokens": "*i64"}
types |= {name: "*fp32" for name in ("temperatures", "top_p", "min_p", "largest", "scores")}
types |= {name: "*i32" for name in ("top_k", "low", "high", "winners", "listed")}
aligned = {"logits", "row_stride", "vocab_size"}
sizes = {"SEGMENT": sampling._SEGMENT, "TILE": sampling._TILE}
padded = {"PADDED_SEGMENTS": 2048, "PADDED_TILES": 64}
for kernel, constants in ((sampling._scan_tile, sizes), (sampling._choose_token, sizes | padded)):
    options = {"aligned": aligned, "unaligned": types.keys() - aligned}
    options["num_warps"] = sampling._NUM_WARPS
    ptx = build(kernel, types, constants, **options).asm["ptx"]
    print(json.dumps({
        "wide_loads": ptx.count("ld.global.v4.b32"), "coarse_logarithms": ptx.count("lg2.approx"),
        "barriers": ptx.count("bar.sync"),
    }))
"""


def test_kernels_compile_for_hopper(tmp_path):
    compiled = run(PROGRAM, tmp_path)
    assert len(compiled) == 2
    for one in compiled:
        assert one["wide_loads"] > 0  # 8 logits each
        assert one["coarse_logarithms"] == 0  # they would spoil the noise of likely tokens
        assert one["barriers"] > 0
