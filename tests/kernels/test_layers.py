"""A layer's element-wise kernels against torch. On a CPU they run in Triton's interpreter."""

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.conftest import DIMENSIONS, HYBRIDS, MODELS
from tests.kernels.conftest import DEVICE, DTYPES
from tests.kernels.graph_world import World
from workers.model.attention.attention import AttentionPlan, PrefillSpan
from workers.model.decoder import CacheShape, Decoder
from workers.model.kernels import reference
from workers.model.layers import means
from workers.model.layout.paged_plan import PagedPlan, locate

pytest.importorskip("triton", reason="kernels need the package triton")

from workers.model.kernels import delta_net, layers, paged_attention  # noqa: E402

EPS = 1e-6
# Half of the last place, which is all that one rounding may cost, and float32's own errors.
ROUNDED_ONCE = {torch.float32: 2e-6, torch.float16: 2**-11 + 2e-6, torch.bfloat16: 2**-8 + 2e-6}
BLOCK_SIZE = 8


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def close_to(exact: Tensor, dtype: torch.dtype) -> dict:
    return {"expected": exact, "rtol": ROUNDED_ONCE[dtype], "atol": 5e-6}


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).to(DEVICE)


def framed(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return a copy of rows between a row of NaN above and one below, and all of them."""
    frame = tensor.new_full((tensor.shape[0] + 2, *tensor.shape[1:]), torch.nan)
    frame[1:-1] = tensor
    return frame[1:-1], frame


class TestAddRMSNorm:
    @pytest.mark.parametrize("width", [1, 16, 100, 896, 5120])
    @pytest.mark.parametrize("num_tokens", [1, 5])
    def test_equals_torch_and_is_rounded_once(self, width, num_tokens, dtype, poisoned):
        torch.manual_seed(width)
        delta, residual = randn(2, num_tokens, width, dtype=dtype) * 3
        weight = randn(width)
        expected, total = means.add_rms_norm(delta, residual.clone(), weight, EPS)
        own, frame = framed(residual)
        normed, returned = layers.add_rms_norm(delta, own, weight, EPS)
        assert returned is own and torch.equal(own, total)
        assert torch.equal(
            frame.isnan().any(1).nonzero()[:, 0].cpu(), torch.tensor([0, num_tokens + 1])
        )
        exact = total.double()
        exact = exact / (exact.square().mean(-1, keepdim=True) + EPS).sqrt() * weight
        torch.testing.assert_close(normed.double(), **close_to(exact, dtype))
        assert (normed != expected).float().mean() < 0.01 or dtype == torch.float32

    def test_without_delta_the_residual_stays(self, dtype, poisoned):
        residual, weight = randn(3, 48, dtype=dtype), randn(48)
        expected, same = means.add_rms_norm(None, residual.clone(), weight, EPS)
        normed, returned = layers.add_rms_norm(None, residual, weight, EPS)
        assert returned is residual and torch.equal(residual, same)
        torch.testing.assert_close(normed, expected, rtol=2 * ROUNDED_ONCE[dtype], atol=2e-6)

    def test_a_step_that_samples_nothing_has_nothing_to_normalize(self):
        normed, _ = layers.add_rms_norm(randn(0, 48), randn(0, 48), randn(48), EPS)
        assert normed.shape == (0, 48)


@dataclass
class Heads:
    """The heads of some tokens, and pages of NaN to write them to."""

    qkv: Tensor
    head_norm: Tensor | None
    scale: float
    cos: Tensor
    sin: Tensor
    slots: Tensor
    pages: list[Tensor]
    is_gated: bool = False

    @classmethod
    def make(
        cls, num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, *,
        has_norm: bool, dtype: torch.dtype, seed: int = 0, rotated: int = 0, is_gated: bool = False,
    ) -> "Heads":  # fmt: skip
        torch.manual_seed(seed)
        num_rotated = num_heads + num_kv_heads
        num_all = num_rotated + num_kv_heads + is_gated * num_heads
        qkv = randn(num_tokens, num_all * head_dim, dtype=dtype) * 2
        head_norm = randn(num_rotated, head_dim) + 1 if has_norm else None
        # Halves that differ, so that none is taken for the other.
        angles = torch.rand(num_tokens, 1, rotated or head_dim, device=DEVICE) * 100
        slots = torch.randperm(4 * BLOCK_SIZE, dtype=torch.int32)[:num_tokens].to(DEVICE)
        shape = (4, BLOCK_SIZE, num_kv_heads, head_dim)
        pages = [torch.full(shape, torch.nan, dtype=dtype, device=DEVICE) for _ in range(2)]
        return cls(qkv, head_norm, 0.3, angles.cos(), angles.sin(), slots, pages, is_gated)

    def run(self, function) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values; the pages stay as they are."""
        keys, values = (pages.clone() for pages in self.pages)
        query = function(
            self.qkv, self.head_norm, EPS, self.scale, self.cos, self.sin, self.slots, keys, values,
            is_gated=self.is_gated,
        )  # fmt: skip
        return query, keys, values

    def check(self) -> None:
        query, keys, values = self.run(layers.norm_rope_write)
        exact = self.qkv.dtype
        self.qkv = self.qkv.double()
        self.pages = [pages.double() for pages in self.pages]
        expected_query, expected_keys, expected_values = self.run(reference.norm_rope_write)
        torch.testing.assert_close(query.double(), **close_to(expected_query, exact))
        torch.testing.assert_close(keys.double(), **close_to(expected_keys, exact), equal_nan=True)
        torch.testing.assert_close(values.double(), expected_values, rtol=0, atol=0, equal_nan=True)


class TestNormRopeWrite:
    @pytest.mark.parametrize("seed", range(12))
    def test_any_heads_equal_the_reference(self, seed, dtype, poisoned):
        chance = random.Random(seed)
        group, num_kv_heads = seed % 8 + 1, chance.choice([1, 2, 3, 8])
        Heads.make(
            chance.randint(1, 6),
            group * num_kv_heads,
            num_kv_heads,
            [16, 64, 80, 128][seed % 4],
            has_norm=chance.random() < 0.5,
            dtype=dtype,
            seed=seed,
        ).check()

    @pytest.mark.parametrize("has_norm", [False, True])
    def test_heads_fill_several_tiles(self, has_norm, dtype, poisoned):
        Heads.make(2, 40, 8, 128, has_norm=has_norm, dtype=dtype).check()

    @pytest.mark.parametrize("seed", range(8))
    def test_heads_rotated_in_part_with_gates_beside_them(self, seed, dtype, poisoned):
        """As hybrid models have them; a model may have either without the other."""
        chance = random.Random(seed)
        num_kv_heads = chance.choice([1, 2])
        Heads.make(
            chance.randint(1, 5),
            chance.randint(1, 7) * num_kv_heads,
            num_kv_heads,
            [256, 32, 80, 48][seed % 4],
            rotated=[64, 8, 20, 0][seed % 4],
            is_gated=seed != 1,
            has_norm=chance.random() < 0.8,
            dtype=dtype,
            seed=seed,
        ).check()

    def test_padding_tokens_share_the_first_slot(self, dtype):
        heads = Heads.make(5, 4, 2, 16, has_norm=True, dtype=dtype)
        heads.slots = torch.tensor([9, 0, 17, 0, 0], dtype=torch.int32, device=DEVICE)
        keys = heads.run(layers.norm_rope_write)[1].flatten(0, 1)
        assert (~keys.isnan()).all(-1).all(-1).nonzero()[:, 0].tolist() == [0, 9, 17]


class TestGateHeads:
    @pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 16), (6, 256), (3, 80)])
    def test_equals_torch_and_is_rounded_where_torch_rounds(self, num_heads, head_dim, dtype):
        torch.manual_seed(head_dim)
        heads = Heads.make(4, num_heads, 1, head_dim, has_norm=False, dtype=dtype, is_gated=True)
        context = randn(4, num_heads, head_dim, dtype=dtype)
        gate = heads.qkv.view(4, -1, head_dim)[:, 1 : 2 * num_heads : 2]
        expected = context * gate.sigmoid()
        own, frame = framed(context)
        gated = layers.gate_heads(own, heads.qkv)
        assert gated is own and frame[[0, -1]].isnan().all()
        torch.testing.assert_close(gated, expected, rtol=4 * ROUNDED_ONCE[dtype], atol=1e-7)
        if dtype != torch.float32:
            assert (gated != expected).float().mean() < 0.01


class TestSiluMul:
    @pytest.mark.parametrize("width", [1, 40, 1024, 1100])
    def test_equals_torch_and_is_rounded_where_torch_rounds(self, width, dtype, poisoned):
        torch.manual_seed(width)
        gate_up = randn(3, 2 * width, dtype=dtype) * 4
        product, expected = layers.silu_mul(gate_up), means.silu_mul(gate_up)
        torch.testing.assert_close(product, expected, rtol=4 * ROUNDED_ONCE[dtype], atol=1e-7)
        if dtype != torch.float32:  # rounded once, one in four would differ
            assert (product != expected).float().mean() < 0.01

    def test_large_gates_neither_overflow_nor_vanish(self, dtype):
        gate_up = torch.tensor([[-80.0, -20.0, 0.0, 80.0] + [2.0] * 4]).to(dtype).to(DEVICE)
        torch.testing.assert_close(layers.silu_mul(gate_up), means.silu_mul(gate_up))


def test_a_token_is_the_same_alone_and_in_a_crowd(dtype):
    heads = Heads.make(5, 6, 2, 64, has_norm=True, dtype=dtype)
    residual, weight = randn(5, 300, dtype=dtype), randn(300)
    normed, _ = layers.add_rms_norm(None, residual, weight, EPS)
    product = layers.silu_mul(heads.qkv)
    query = heads.run(layers.norm_rope_write)[0]
    one = slice(3, 4)
    assert torch.equal(layers.add_rms_norm(None, residual[one], weight, EPS)[0], normed[one])
    assert torch.equal(layers.silu_mul(heads.qkv[one]), product[one])
    heads.qkv, heads.cos, heads.sin = heads.qkv[one], heads.cos[one], heads.sin[one]
    heads.slots = heads.slots[one]
    assert torch.equal(heads.run(layers.norm_rope_write)[0], query[one])


class TestDecoder:
    @pytest.mark.parametrize("name", [name for name in MODELS if name not in HYBRIDS])
    def test_for_kernels_equals_torch(self, name, poisoned):
        by_torch, by_kernels = decoder_of(name), decoder_of(name, for_kernels=True)
        for spans in ([(0, 7), (0, 4)], [(7, 9), (4, 5)]):
            expected, logits = run_torch(by_torch, spans), run_kernels(by_kernels, spans)
            assert expected.std() > 0.1  # something to compare
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-5)

    def test_a_layer_is_nine_launches(self, monkeypatch):
        decoder, launched = decoder_of("qwen3", for_kernels=True), []
        for module, names in KERNELS.items():
            for name in names:
                monkeypatch.setattr(module, name, Noted(name, launched))
        with Noting(launched):
            run_kernels(decoder, [(3, 4)])
        attended = [i for i, name in enumerate(launched) if name == "_attend_tiles"]
        assert len(attended) == 2
        assert launched[attended[0] : attended[1]] == [
            "_attend_tiles", "linear", "_add_and_normalize", "linear", "_silu_and_multiply",
            "linear", "_add_and_normalize", "linear", "_normalize_rotate_and_write",
        ]  # fmt: skip

    def test_a_layer_with_a_state_is_ten_launches_and_attention_beside_it_too(self, monkeypatch):
        world = World(
            num_sequences=2, is_batch_invariant=False, for_kernels=True, is_hybrid=True,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            num_hidden_layers=3,
        )  # fmt: skip
        world.prefill(3, 4)
        flat, launched = world.flat(1, 1), []
        for module, names in KERNELS.items():
            for name in names:
                monkeypatch.setattr(module, name, Noted(name, launched))
        with Noting(launched):
            world.eager(flat)
        first, last = (i for i, name in enumerate(launched) if name == "_prepare_tokens")
        feed_forward = [
            "linear", "_add_and_normalize", "linear", "_silu_and_multiply", "linear",
            "_add_and_normalize", "linear",
        ]  # fmt: skip
        assert launched[first:last] == [
            "_prepare_tokens", "_step_rows", "_normalize_heads", *feed_forward,
            "_normalize_rotate_and_write", "_attend_tiles", "_gate_heads", *feed_forward,
        ]  # fmt: skip


KERNELS = {
    delta_net: ("_prepare_tokens", "_step_rows", "_normalize_heads"),
    layers: (
        "_add_and_normalize",
        "_normalize_rotate_and_write",
        "_gate_heads",
        "_silu_and_multiply",
    ),
    paged_attention: ("_attend_tiles",),
}


class Noted:
    """In the place of a kernel, notes its launches."""

    def __init__(self, name: str, launched: list[str]) -> None:
        self._name, self._launched = name, launched

    def __getitem__(self, grid):
        return lambda *args, **options: self._launched.append(self._name)


class Noting(TorchDispatchMode):
    """Notes the operations of torch that launch something."""

    def __init__(self, launched: list[str]) -> None:
        super().__init__()
        self._launched = launched

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not function.is_view and name not in ("new_empty", "_unsafe_view"):
            self._launched.append(name)
        return function(*args, **(kwargs or {}))


def decoder_of(name: str, *, for_kernels: bool = False) -> Decoder:
    """Return a random model of odd sizes in float32, with a cache for two rows of two blocks."""
    model_class, config_class, own = MODELS[name]
    odd = {"hidden_size": 96, "intermediate_size": 200, "num_attention_heads": 6}
    fields = DIMENSIONS | odd | {"num_key_value_heads": 2} | own
    torch.manual_seed(11)
    config = config_class(**{k: v for k, v in fields.items() if v is not None})
    model = model_class(config).eval().to(DEVICE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 * (parameter.dim() == 1), std=0.15)
    decoder = Decoder(model, for_kernels=for_kernels)
    shape = CacheShape.of(config, torch.float32, for_kernels=for_kernels)
    decoder.allocate_cache(shape, 5, BLOCK_SIZE)
    return decoder


def run_torch(decoder: Decoder, spans: list[tuple[int, int]]) -> Tensor:
    """Return the logits of tokens `first:stop` of each row, which has two blocks of its own."""
    prefills, num_tokens = [], 0
    for row, (first, stop) in enumerate(spans):
        pages = slice((2 * row + 1) * BLOCK_SIZE, (2 * row + 3) * BLOCK_SIZE)
        start, num_tokens = num_tokens, num_tokens + stop - first
        prefills.append(PrefillSpan(start, num_tokens, pages, stop))
    positions = torch.cat([torch.arange(first, stop) for first, stop in spans]).to(DEVICE)
    slots = torch.cat(
        [torch.arange(*span) + (2 * row + 1) * BLOCK_SIZE for row, span in enumerate(spans)]
    ).to(DEVICE)
    plan = AttentionPlan(slots, (), tuple(prefills))
    return decoder.forward(slots, positions, plan, torch.arange(num_tokens, device=DEVICE))


def run_kernels(decoder: Decoder, spans: list[tuple[int, int]]) -> Tensor:
    """Return the same, computed beside two tokens of padding."""
    counts = [stop - first for first, stop in spans]
    as_int32 = {"dtype": torch.int32, "device": DEVICE}
    starts = torch.tensor([0, *counts], **as_int32).cumsum(0, dtype=torch.int32)
    lengths = torch.tensor([stop for _, stop in spans], **as_int32)
    tables = torch.arange(1, 2 * len(spans) + 1, **as_int32).view(-1, 2)
    num_tokens = sum(counts)
    positions, slots = locate(starts, lengths, tables, num_tokens + 2, BLOCK_SIZE)
    plan = PagedPlan(slots, starts, lengths, tables, max(counts))
    return decoder.forward(slots, positions, plan, torch.arange(num_tokens, device=DEVICE))
