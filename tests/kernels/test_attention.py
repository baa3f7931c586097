"""Kernels against plain torch and float64. On a CPU they run in Triton's interpreter."""

import random

import pytest
import torch

from tests.kernels.conftest import DEVICE, DTYPES, make_case
from workers.model.kernels import reference
from workers.model.layout.paged_plan import PagedPlan, choose_splits, locate

pytest.importorskip("triton", reason="kernels need the package triton")

from workers.model.kernels import paged_attention  # noqa: E402

MIXED = [(1, 40), (9, 9), (0, 0), (1, 1), (7, 50), (0, 30), (20, 21), (1, 129)]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def attend(case, **plan) -> torch.Tensor:
    return paged_attention.attend(case.query, case.keys, case.values, case.plan(**plan))


def random_rows(chance: random.Random) -> list[tuple[int, int]]:
    rows = []
    for _ in range(chance.randint(1, 5)):
        length = chance.choice([1, 2, 15, 16, 17, 64, 65, chance.randint(1, 200)])
        tokens = chance.choice([0, 1, 1, 1, length, min(length, chance.randint(1, 40))])
        rows.append((tokens, length))
    return rows if any(tokens for tokens, _ in rows) else [*rows, (1, 33)]


@pytest.mark.parametrize("seed", range(16))
def test_any_batch_equals_the_reference(seed, dtype, poisoned):
    chance = random.Random(seed)
    case = make_case(
        random_rows(chance),
        group=seed % 8 + 1,
        num_kv_heads=chance.choice([1, 2, 3]),
        head_dim=[64, 128][seed // 8],
        block_size=chance.choice([8, 16, 32, 64, 128]),
        dtype=dtype,
        seed=seed,
    )
    case.check(attend(case, num_splits=chance.choice([1, 1, 2, 8])))


@pytest.mark.parametrize("num_splits", [1, 4])
@pytest.mark.parametrize("group", [1, 4, 7])
def test_mixed_rows_equal_their_torch_twin(group, num_splits, dtype, poisoned):
    case = make_case(MIXED, group=group, dtype=dtype)
    context = attend(case, num_splits=num_splits)
    case.check(context)
    plan = case.plan(num_splits)
    twin = reference.attend(case.query, case.keys, case.values, plan)
    if dtype == torch.float32:
        torch.testing.assert_close(context, twin, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("num_splits", [1, 16])
def test_long_contexts_decode(num_splits, dtype, poisoned):
    rows = [(1, 5000), (1, 3), (0, 0), (1, 4097)]
    case = make_case(rows, group=8, num_kv_heads=1, head_dim=128, block_size=64, dtype=dtype)
    case.check(attend(case, num_splits=num_splits))


def test_a_chunk_of_a_long_prompt_beside_decodes(dtype, poisoned):
    rows = [(1, 700), (70, 5000), (1, 9)]
    case = make_case(rows, group=4, num_kv_heads=1, block_size=64, dtype=dtype)
    case.check(attend(case))


@pytest.mark.parametrize("head_dim", [8, 16, 80, 256])
def test_heads_of_other_sizes(head_dim, dtype, poisoned):
    case = make_case(MIXED, head_dim=head_dim, dtype=dtype)
    case.check(attend(case))
    case.check(attend(case, num_splits=2))


@pytest.mark.parametrize("num_splits", [1, 4])
@pytest.mark.parametrize("window", [1, 5, 16, 40, 64, 128, 1000])
def test_a_window_hides_what_lies_before_it(window, num_splits, dtype, poisoned):
    rows = [*MIXED, (30, 300), (1, 700)]
    case = make_case(rows, dtype=dtype, window=window)
    plan = case.plan(num_splits)
    case.check(paged_attention.attend(case.query, case.keys, case.values, plan, window))
    if dtype == torch.float32:
        case.check(reference.attend(case.query, case.keys, case.values, plan, window))


@pytest.mark.parametrize("window", [3, 64, 100])
def test_single_rows_have_a_window_too(window, dtype, poisoned):
    case = make_case([(1, 700), (1, 9), (1, 64), (0, 0), (1, 65)], dtype=dtype, window=window)
    for num_splits in (1, 2, 8):
        plan = case.plan(num_splits)
        case.check(paged_attention.attend(case.query, case.keys, case.values, plan, window))


def test_prompt_in_chunks_equals_the_prompt_at_once(dtype):
    whole = make_case([(100, 100)], dtype=dtype)
    parts = []
    for first, stop in ((0, 33), (33, 34), (34, 100)):
        chunk = make_case([(100, 100)], dtype=dtype)
        chunk.rows, chunk.query = [(stop - first, stop)], whole.query[first:stop]
        chunk.starts = torch.tensor([0, stop - first], dtype=torch.int32, device=DEVICE)
        chunk.lengths = torch.tensor([stop], dtype=torch.int32, device=DEVICE)
        parts.append(attend(chunk, max_query=100))
    whole.check(torch.cat(parts))


def test_without_splits_a_row_is_the_same_alone_and_in_a_crowd(dtype):
    rows = [(1, 45), (1, 7), (1, 200), (1, 64)]
    crowd = make_case(rows, dtype=dtype)
    together = attend(crowd)
    for index, row in enumerate(rows):
        alone = PagedPlan(
            crowd.plan().slots[index : index + 1],
            torch.tensor([0, 1], dtype=torch.int32, device=DEVICE),
            crowd.lengths[index : index + 1],
            crowd.tables[index : index + 1],
            max_query=row[0],
        )
        query = crowd.query[index : index + 1]
        context = paged_attention.attend(query, crowd.keys, crowd.values, alone)
        assert torch.equal(context[0], together[index])


def test_padding_rows_and_tokens_disturb_nothing(dtype):
    rows = [(1, 40), (5, 5), (0, 0), (0, 0)]
    case = make_case(rows, padding=6, dtype=dtype)
    for num_splits in (1, 2):
        case.check(attend(case, num_splits=num_splits))


def test_queries_may_be_a_slice_of_a_wider_tensor(dtype):
    case = make_case(MIXED, dtype=dtype)
    wide = torch.full((len(case.query), 7, 64), torch.nan, dtype=dtype, device=DEVICE)
    wide[:, 1:5] = case.query
    case.query = wide[:, 1:5]
    assert not case.query.is_contiguous()
    case.check(attend(case))


def test_positions_and_slots_follow_from_starts_lengths_and_tables():
    rows, block_size = [(1, 40), (9, 9), (0, 0), (3, 50)], 16
    case = make_case(rows, padding=2, block_size=block_size)
    positions, slots = locate(case.starts, case.lengths, case.tables, 15, block_size)
    expected = [
        (row, position)
        for row, (tokens, length) in enumerate(rows)
        for position in range(length - tokens, length)
    ]
    assert positions.tolist() == [position for _, position in expected] + [0, 0]
    tables = case.tables.tolist()
    assert slots.tolist() == [
        tables[row][position // block_size] * block_size + position % block_size
        for row, position in expected
    ] + [0, 0]


def test_splits_fill_a_processor_and_never_shorten_parts_below_use():
    device = torch.device(DEVICE)
    assert choose_splits(4096, 8, 32768, device) == 1
    assert choose_splits(1, 1, 100, device) == 1
    few, more = choose_splits(1, 2, 600, device), choose_splits(1, 2, 32768, device)
    assert 1 < few <= 600 // 256 < more <= 32
    assert more & (more - 1) == 0
