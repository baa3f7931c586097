"""The compiled functions: what they compute, and what happens where they cannot be compiled."""

import logging
import os
import platform
import stat

import psutil
import pytest
import torch

from workers.model.attention.kv_cache import KVCache
from workers.model.layers.means import add_rms_norm, silu_mul
from workers.model.layers.qwen_layers import Rope
from workers.model.layout.int4_weight import Int4Weight, num_words, pack_words
from workers.model.native import library
from workers.model.native.bfloat16_tiles import Bfloat16Tiles
from workers.model.native.int4_tiles import Int4Tiles, concatenate
from workers.model.native.native import PART, Native
from workers.model.native.panels import fill_up

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


@pytest.fixture(params=DTYPES, ids=str)
def native(request):
    made = Native.load(request.param)
    assert made is not None, "tests need a C compiler"
    made.dtype, made.error = request.param, DTYPES[request.param]
    return made


class Cache:
    """Keys and values of one layer, poisoned where no sequence has written."""

    def __init__(self, lengths, num_kv_heads, head_dim, block_size, dtype, most_blocks=0):
        torch.manual_seed(sum(lengths) + head_dim)
        width = max(-(-length // block_size) for length in lengths)
        order = torch.randperm(len(lengths) * width) + 1
        self.tables = order.view(len(lengths), width).to(torch.int32)
        self.block_size, self.lengths = block_size, torch.tensor(lengths, dtype=torch.int32)
        shape = (num_kv_heads, (len(order) + 1) * block_size, head_dim)
        self.keys, self.values = (torch.full(shape, torch.nan, dtype=dtype) for _ in range(2))
        for row, length in enumerate(lengths):
            slots = self.slots(row)[:length]
            self.keys[:, slots] = torch.randn(num_kv_heads, length, head_dim).to(dtype)
            self.values[:, slots] = torch.randn(num_kv_heads, length, head_dim).to(dtype)

    def slots(self, row):
        within = torch.arange(self.block_size)
        return (self.tables[row].long()[:, None] * self.block_size + within).view(-1)

    def attend(self, native, query, rows=None, lengths=None, window=None):
        rows = torch.arange(len(self.lengths), dtype=torch.int32) if rows is None else rows
        lengths = self.lengths if lengths is None else lengths
        cached = (self.keys, self.values, self.block_size, self.tables)
        return native.attend(query, *cached, rows, lengths, int(lengths.max()), window)

    def expect(self, query, row, length, window=None):
        """Return the context of one token's heads by softmax, in float64."""
        slots = self.slots(row)[max(0, length - window) if window else 0 : length]
        repeat = query.shape[0] // len(self.keys)
        keys, values = (
            part[:, slots].double().repeat_interleave(repeat, 0)
            for part in (self.keys, self.values)
        )
        weights = torch.einsum("hd,hkd->hk", query.double(), keys).softmax(-1)
        return torch.einsum("hk,hkd->hd", weights, values)


def error_of(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"),
    [(16, 8, 128, 32), (6, 2, 64, 8), (5, 1, 16, 16), (16, 1, 48, 1), (3, 3, 256, 100)],
)
@pytest.mark.parametrize("window", [None, 1, 40, 1500])
def test_tokens_attend_over_blocks_in_place(native, heads, kv_heads, head_dim, block_size, window):
    lengths = [1, 33, 2, 64, 31, PART, PART + 1, 2 * PART + 77]
    cache = Cache(lengths, kv_heads, head_dim, block_size, native.dtype)
    query = (torch.randn(len(lengths), heads, head_dim) * head_dim**-0.5).to(native.dtype)
    found = cache.attend(native, query, window=window)
    for row, length in enumerate(lengths):
        expected = cache.expect(query[row], row, length, window)
        assert error_of(found[row], expected) < native.error, length


def test_scores_may_be_as_large_as_they_like(native):
    cache = Cache([200, 5], 2, 64, 32, native.dtype)
    query = (torch.randn(2, 4, 64) * torch.tensor([30.0, 1e3])[:, None, None]).to(native.dtype)
    found = cache.attend(native, query)
    for row, length in enumerate((200, 5)):
        assert error_of(found[row], cache.expect(query[row], row, length)) < 5 * native.error


def test_a_token_depends_on_nothing_beside_it(native):
    lengths = [700, 3, 2500, 40]
    cache = Cache(lengths, 2, 64, 32, native.dtype)
    rows = torch.tensor([2, 0, 2, 1, 3, 2], dtype=torch.int32)
    seen = torch.tensor([2500, 700, 1, 3, 17, 1025], dtype=torch.int32)
    query = torch.randn(len(rows), 6, 64).to(native.dtype)
    together = cache.attend(native, query, rows, seen)
    threads = torch.get_num_threads()
    try:
        for number in range(len(rows)):
            torch.set_num_threads(1 + number % 3)
            own = slice(number, number + 1)
            alone = cache.attend(native, query[own].clone(), rows[own], seen[own])
            assert torch.equal(alone[0], together[number])
    finally:
        torch.set_num_threads(threads)


def test_what_is_not_a_number_stays_with_its_own_token(native):
    cache = Cache([40, 50], 2, 32, 16, native.dtype)
    query = torch.randn(2, 2, 32).to(native.dtype)
    expected = cache.attend(native, query)
    cache.values[:, cache.slots(0)[7]] = torch.nan
    found = cache.attend(native, query)
    assert found[0].isnan().all() and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_nothing_hides_what_is_no_number(native, number):
    """As torch's arithmetic would not, which is what finds damaged weights."""
    cache = Cache([40, 50], 2, 32, 16, native.dtype)
    query = torch.randn(2, 2, 32).to(native.dtype)
    cache.keys[0, cache.slots(1)[3], 5] = number
    spoilt = cache.attend(native, query)[1]
    assert spoilt[0].isnan().all() and spoilt[1].isfinite().all()
    query[0, 1, 2] = number
    spoilt = cache.attend(native, query)[0]
    assert spoilt[1].isnan().all() and spoilt[0].isfinite().all()
    x = torch.randn(3, 64).to(native.dtype)
    x[1, 7] = number
    assert native.round_rows(x)[1].isnan().view(-1).tolist() == [False, True, False]
    weight, _ = make_int4(32, 64, 32)
    found = native.multiply_int4(x, Int4Tiles.of(weight), None)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()
    weight.scales[1, 20] = number
    found = native.multiply_int4(x[:1].clone(), Int4Tiles.of(weight), None)
    assert found[0, 20].isnan() and found[0, :16].isfinite().all()
    assert native.add_rms_norm(None, x.clone(), torch.ones(64), 1e-6)[0][1, 7].isnan()
    assert not native.silu_mul(x)[1, 7].isfinite() or number == -torch.inf


def test_numbers_whose_scale_is_0_are_0(native):
    weight, _ = make_int4(16, 64, 32)
    weight.scales[:] = 0
    x = torch.full((2, 64), 100.0).to(native.dtype)
    assert native.multiply_int4(x, Int4Tiles.of(weight), None).eq(0).all()


def test_long_contexts_of_many_tokens_are_computed_in_slices(native, monkeypatch):
    lengths = torch.arange(1, 200, dtype=torch.int32)
    cache = Cache([200], 2, 32, 16, native.dtype)
    query = torch.randn(len(lengths), 4, 32).to(native.dtype)
    rows = torch.zeros(len(lengths), dtype=torch.int32)
    whole = cache.attend(native, query, rows, lengths)
    monkeypatch.setattr("workers.model.native.native._MOST_SCRATCH", 1000)
    assert torch.equal(cache.attend(native, query, rows, lengths), whole)


def test_other_heads_are_left_to_torch():
    assert Native.takes_heads(128, 8) and Native.takes_heads(256, 16) and Native.takes_heads(16, 1)
    assert not Native.takes_heads(8, 1) and not Native.takes_heads(272, 1)
    assert not Native.takes_heads(128, 17)


@pytest.fixture
def loading(monkeypatch, tmp_path):
    """Load as in a new process of a user who has compiled nothing; what nobody runs is compiled in
    a second.
    """
    monkeypatch.setattr(library, "_FLAGS", ("-O0", *library._FLAGS[1:]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda dtype=torch.float32: library.load.__wrapped__(dtype)


def kept_file(tmp_path):
    (file,) = (tmp_path / "cache" / "qwenapi").iterdir()
    return file


def test_they_are_compiled_once(loading, tmp_path, monkeypatch):
    assert loading() is not None
    file = kept_file(tmp_path)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiled again"))
    assert loading() is not None


def test_what_somebody_else_could_have_written_is_not_loaded(loading, tmp_path):
    assert loading() is not None
    file = kept_file(tmp_path)
    os.chmod(file, 0o722)
    before = file.stat().st_ino
    assert loading() is not None
    assert file.stat().st_ino != before and not file.stat().st_mode & 0o022


@pytest.mark.parametrize("size", [0, 1000])
def test_a_file_that_was_cut_is_compiled_anew(loading, tmp_path, size):
    assert loading() is not None
    file = kept_file(tmp_path)
    whole = file.stat().st_size
    os.truncate(file, size)
    assert loading() is not None
    assert kept_file(tmp_path).stat().st_size == whole


def test_a_user_without_a_home_has_them_compiled_at_each_start(loading, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(
        library.Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError)
    )
    assert loading() is not None


def test_a_compiler_may_have_arguments(loading, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "gcc -pipe")
    assert loading() is not None and kept_file(tmp_path)


def test_without_a_place_to_keep_them_they_are_compiled_at_each_start(loading, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    assert loading() is not None


@pytest.mark.parametrize(
    ("compiler", "words"),
    [("", "no C compiler; install gcc"), ("false", "false failed"), ("/no/cc", "/no/cc failed")],
)
def test_without_a_compiler_the_log_says_so(loading, monkeypatch, caplog, compiler, words):
    monkeypatch.setenv("CC", compiler)
    if not compiler:
        monkeypatch.setenv("PATH", "/nowhere")
    with caplog.at_level(logging.WARNING):
        assert loading() is None
    assert "no compiled functions" in caplog.text and words in caplog.text


def test_there_are_none_for_other_numbers(loading, caplog):
    assert loading(torch.float16) is None
    assert "there is none for torch.float16" in caplog.text


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"),
    [(16, 8, 128, 32), (6, 2, 64, 8), (5, 1, 32, 16), (16, 1, 64, 1), (3, 3, 256, 100)],
)
@pytest.mark.parametrize(("length", "num_tokens"), [(1, 1), (130, 130), (700, 77), (64, 5)])
@pytest.mark.parametrize("window", [None, 1, 40, 200])
def test_spans_attend_causally_over_blocks(
    heads, kv_heads, head_dim, block_size, length, num_tokens, window
):
    made = Native.load(torch.bfloat16)
    if not made.takes_spans(head_dim):
        pytest.skip("torch attends spans on this CPU")
    cache = Cache([length], kv_heads, head_dim, block_size, torch.bfloat16)
    query = (torch.randn(num_tokens, heads, head_dim) * head_dim**-0.5).bfloat16()
    cached = (cache.keys, cache.values, block_size, cache.tables[0])
    found = made.attend_span(query, *cached, length, window)
    for token in range(num_tokens):
        expected = cache.expect(query[token], 0, length - num_tokens + token + 1, window)
        assert error_of(found[token], expected) < 2 * DTYPES[torch.bfloat16], token


def test_a_token_of_a_span_is_spoilt_by_no_later_one():
    made = Native.load(torch.bfloat16)
    if not made.takes_spans(64):
        pytest.skip("torch attends spans on this CPU")
    cache = Cache([90], 2, 64, 16, torch.bfloat16)
    cache.keys[:, cache.slots(0)[80]] = torch.nan
    query = torch.randn(90, 4, 64).bfloat16()
    cached = (cache.keys, cache.values, cache.block_size, cache.tables[0])
    found = made.attend_span(query, *cached, 90, None)
    assert found[80:].isnan().any(-1).all() and found[:80].isfinite().all()


def plain_products(num_outputs, num_inputs):
    """Return a random weight in bfloat16 with a bias, and what multiplies by its tiles."""
    torch.manual_seed(num_outputs)
    weight = torch.randn(num_outputs, num_inputs).bfloat16()
    made = Native.load(torch.bfloat16)
    if not made.takes_plain(num_inputs):
        pytest.skip("oneDNN multiplies on this CPU")
    tiles, bias = Bfloat16Tiles.of(weight), torch.randn(num_outputs)
    padded = fill_up(bias.float())
    return weight, bias, lambda x: made.multiply_bfloat16(x, tiles, padded)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 12, 13, 40])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 128), (33, 1022), (1, 64), (320, 2)])
def test_a_product_in_bfloat16_is_exact_but_for_rounding(num_rows, num_outputs, num_inputs):
    weight, bias, multiply = plain_products(num_outputs, num_inputs)
    x = torch.randn(num_rows, num_inputs).bfloat16()
    exact = x.double() @ weight.double().T + bias
    bound = x.double().abs() @ weight.double().abs().T * num_inputs**0.5 * 2**-22
    bound += exact.abs() * 2**-8
    assert bool(((multiply(x).double() - exact).abs() <= bound).all())


def test_a_row_in_bfloat16_depends_on_nothing_beside_it():
    _, _, multiply = plain_products(200, 512)
    x = torch.randn(61, 512).bfloat16()
    together, threads = multiply(x), torch.get_num_threads()
    try:
        for first, stop in ((0, 1), (3, 8), (7, 23), (20, 61)):
            torch.set_num_threads(1 + first % 3)
            assert torch.equal(multiply(x[first:stop].clone()), together[first:stop])
    finally:
        torch.set_num_threads(threads)


def test_what_is_no_number_spoils_its_own_row_in_bfloat16():
    _, _, multiply = plain_products(40, 64)
    x = torch.randn(14, 64).bfloat16()
    expected = multiply(x)
    x[5, 9] = torch.nan
    found = multiply(x)
    assert found[5].isnan().all()
    others = [row for row in range(14) if row != 5]
    assert torch.equal(found[others], expected[others])


def make_int4(num_outputs, num_inputs, group_size, is_reordered=False):
    """Return a random weight of 4 bits, and its numbers as float64 [out, in]."""
    torch.manual_seed(num_outputs + group_size)
    num_groups = -(-num_inputs // group_size)
    numbers = torch.randint(0, 16, (num_inputs, num_outputs), dtype=torch.int32)
    scales = (0.1 + torch.rand(num_groups, num_outputs)) * torch.logspace(-3, 0, num_outputs)
    zeros = torch.randint(0, 16, (num_groups, num_outputs), dtype=torch.uint8)
    order = torch.randperm(num_inputs) if is_reordered else None
    width = num_words(group_size, num_inputs)
    words = pack_words(numbers, width).contiguous()
    weight = Int4Weight(words, scales, zeros, group_size, num_inputs, order)
    return weight, weight.unpack(torch.float32).double()


def rounded_by_groups(x, group_size, order):
    """Return x `[rows, in]` as products with 4 bits see it: 8 bits and a scale a group."""
    x = x.float() if order is None else x[:, order].float()
    whole = torch.nn.functional.pad(x, (0, -x.shape[1] % group_size))
    groups = whole.view(len(x), -1, group_size)
    scales = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    seen = ((groups / scales).round() * scales).flatten(1)[:, : x.shape[1]]
    return seen if order is None else torch.empty_like(seen).index_copy_(1, order, seen)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 15, 40])
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "group_size", "is_reordered"),
    [(64, 128, 32, False), (33, 256, 128, True), (1, 64, 64, False), (48, 200, 1000, False),
     (20, 96, 64, False)],
)  # fmt: skip
def test_a_product_with_4_bits_is_exact_but_for_rounding_x(
    native, num_rows, num_outputs, num_inputs, group_size, is_reordered
):
    weight, plain = make_int4(num_outputs, num_inputs, group_size, is_reordered)
    tiles = Int4Tiles.of(weight)
    x = torch.randn(num_rows, num_inputs).to(native.dtype)
    x[:, : num_inputs // 2] *= 30
    bias = torch.randn(num_outputs)
    seen = rounded_by_groups(x, min(group_size, num_inputs), weight.order)
    expected = seen.double() @ plain.T + bias.double()
    found = native.multiply_int4(x, tiles, bias)
    # Scales are rounded to half precision, y to its dtype, and a tie of x perhaps the other way.
    bound = seen.double().abs() @ plain.T.abs() * 2**-11
    bound += expected.abs() * native.error + x.abs().amax() / 127 * plain.abs().amax(1)
    assert bool(((found.double() - expected).abs() < bound).all())
    without = native.multiply_int4(x, tiles, None).double() + bias
    assert torch.allclose(without, found.double(), rtol=2 * native.error, atol=0.02)


def test_a_row_times_4_bits_depends_on_nothing_beside_it(native):
    weight, _ = make_int4(100, 256, 32)
    tiles = Int4Tiles.of(weight)
    x = torch.randn(23, 256).to(native.dtype)
    together = native.multiply_int4(x, tiles, None)
    for first, stop in ((0, 1), (3, 8), (7, 23)):
        own = x[first:stop].clone()
        assert torch.equal(native.multiply_int4(own, tiles, None), together[first:stop])


def test_rows_of_zeros_and_groups_without_scale_are_zeros(native):
    weight, _ = make_int4(32, 64, 32)
    weight.zeros[:] = 3
    weight.scales[0] = 0
    tiles = Int4Tiles.of(weight)
    x = torch.zeros(2, 64).to(native.dtype)
    x[1, :32] = torch.randn(32).to(native.dtype)
    assert native.multiply_int4(x, tiles, None).float().abs().max() < 0.02


def test_parts_of_4_bits_are_joined_where_tiles_allow(native):
    parts = [make_int4(size, 128, 32)[0] for size in (32, 16, 20)]
    joined = concatenate([Int4Tiles.of(part) for part in parts])
    x = torch.randn(3, 128).to(native.dtype)
    each = [native.multiply_int4(x, Int4Tiles.of(part), None) for part in parts]
    assert joined.shape == (68, 128)
    assert torch.equal(native.multiply_int4(x, joined, None), torch.cat(each, 1))
    assert concatenate([Int4Tiles.of(part) for part in parts[::-1]]) is None
    other = Int4Tiles.of(make_int4(32, 128, 64)[0])
    assert concatenate([Int4Tiles.of(parts[0]), other]) is None


@pytest.mark.parametrize("arch", ["haswell", "x86-64"])
def test_older_cpus_compute_the_same(native, arch, monkeypatch, loading):
    if platform.machine() != "x86_64":
        pytest.skip("the flag is for x86-64")
    flags = [flag for flag in library._FLAGS if "march" not in flag]
    monkeypatch.setattr(library, "_FLAGS", (*flags, f"-march={arch}", "-ffp-contract=off"))
    older = Native(loading(native.dtype), native.dtype)
    weight, _ = make_int4(100, 256, 32)
    x = torch.randn(9, 256).to(native.dtype)
    found, expected = (
        one.multiply_int4(x, Int4Tiles.of(weight), None).float() for one in (older, native)
    )
    assert error_of(found, expected.double()) < native.error
    cache = Cache([100, 7], 2, 64, 32, native.dtype)
    query = (torch.randn(2, 6, 64) / 8).to(native.dtype)
    found, expected = (cache.attend(one, query).float() for one in (older, native))
    assert error_of(found, expected.double()) < native.error


@pytest.mark.parametrize("num_tokens", [1, 3, 200])
@pytest.mark.parametrize("has_delta", [False, True])
def test_norms_are_added_and_rounded_as_by_torch(native, num_tokens, has_delta):
    torch.manual_seed(num_tokens)
    residual = (torch.randn(num_tokens, 96) * 50).to(native.dtype)
    delta = torch.randn(num_tokens, 96).to(native.dtype) if has_delta else None
    weight = torch.rand(96) + 0.5
    mine, theirs = residual.clone(), residual.clone()
    found, total = native.add_rms_norm(delta, mine, weight, 1e-6)
    expected, other = add_rms_norm(delta, theirs, weight, 1e-6)
    assert total is mine and torch.equal(total, other)
    assert error_of(found, expected.double()) < native.error


@pytest.mark.parametrize(("head_dim", "rotated"), [(128, 128), (64, 16), (16, 16), (256, 64)])
@pytest.mark.parametrize("is_normed", [False, True])
def test_heads_are_rotated_and_written(native, head_dim, rotated, is_normed):
    torch.manual_seed(head_dim)
    num_tokens, heads, kv_heads, num_slots = 7, 6, 2, 40
    qkv = torch.randn(num_tokens, (heads + 2 * kv_heads) * head_dim).to(native.dtype)
    norms = torch.rand(heads + kv_heads, head_dim) + 0.5 if is_normed else None
    angles = torch.randn(num_tokens, 1, rotated // 2)
    cos = angles.cos().repeat(1, 1, 2)
    sin = torch.cat((-angles.sin(), angles.sin()), -1)
    slots = torch.randperm(num_slots)[:num_tokens]
    keys, values = (torch.full((kv_heads, num_slots, head_dim), 9.0).to(native.dtype) for _ in "kv")
    scale = 1.0 if is_normed else 0.25
    query = native.norm_rope_write(qkv, norms, 1e-6, scale, cos, sin, slots, keys, values)
    split = qkv.view(num_tokens, -1, head_dim)
    x = split[:, : heads + kv_heads].float()
    if is_normed:
        x = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norms
    else:
        x[:, :heads] *= scale
    x = Rope(cos, sin).rotate(x)
    assert error_of(query, x[:, :heads].double()) < native.error
    assert error_of(keys[:, slots].transpose(0, 1), x[:, heads:].double()) < native.error
    assert torch.equal(values[:, slots].transpose(0, 1), split[:, heads + kv_heads :])
    rest = torch.ones(num_slots, dtype=torch.bool)
    rest[slots] = False
    assert keys[:, rest].eq(9).all() and values[:, rest].eq(9).all()


def test_silu_is_that_of_torch_at_both_ends(native):
    gate = torch.cat((torch.linspace(-120, 120, 60), torch.tensor([0.0, -0.0, 1e-30, -1e-30])))
    gate_up = torch.cat((gate, torch.randn(64)))[None].repeat(3, 1).to(native.dtype)
    expected = silu_mul(gate_up.double())
    assert error_of(native.silu_mul(gate_up), expected) < 2 * native.error


def test_what_lies_between_products_depends_on_nothing_beside_it(native):
    x = torch.randn(600, 128).to(native.dtype)
    together = native.silu_mul(x), native.add_rms_norm(None, x.clone(), torch.ones(128), 1e-6)[0]
    for row in (0, 7, 599):
        own = x[row : row + 1].clone()
        assert torch.equal(native.silu_mul(own)[0], together[0][row])
        assert torch.equal(
            native.add_rms_norm(None, own, torch.ones(128), 1e-6)[0][0], together[1][row]
        )


def test_a_cache_takes_memory_only_where_something_is_written():
    before = psutil.Process().memory_info().rss
    cache = KVCache(8, 8192, 32, 128, torch.bfloat16, torch.device("cpu"))
    written = torch.ones(1, 8, 128, dtype=torch.bfloat16)
    cache.write(torch.tensor([40]), written, written)
    assert psutil.Process().memory_info().rss - before < 32 << 20, "of a gibibyte"
    assert torch.equal(cache.gather(slice(40, 41))[0][:, 0], written[0])
