"""`deterministic = true` on the kernels: the same bits alone, in a crowd, in chunks and resumed."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.engine.conftest import Driver, write_model
from tests.kernels.conftest import DEVICE, DTYPES, Case, make_case
from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.model.kernels import reference
from workers.model.layout.paged_plan import PagedPlan, locate
from workers.model.linear import batch_invariant

pytest.importorskip("triton", reason="kernels need the package triton")

from workers.model.kernels import matmul, paged_attention  # noqa: E402

NEW_TOKENS = 4
PROMPT = [5 + i * 7 % 290 for i in range(27)]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def attend(case: Case) -> torch.Tensor:
    plan = replace(case.plan(), is_batch_invariant=True)
    return paged_attention.attend(case.query, case.keys, case.values, plan)


def attend_some(case: Case, spans: list[tuple[int, int, int]]) -> list[torch.Tensor]:
    """Attend in one batch with tokens `first:stop` of rows, given as (row, first, stop).

    A row's tokens are all of its sequence's.
    """
    starts = case.starts.tolist()
    query = torch.cat([case.query[starts[r] + a : starts[r] + b] for r, a, b in spans])
    counts = [stop - first for _, first, stop in spans]
    on_device = {"dtype": torch.int32, "device": DEVICE}
    where = torch.tensor([0, *counts], **on_device).cumsum(0, dtype=torch.int32)
    lengths = torch.tensor([stop for _, _, stop in spans], **on_device)
    tables = case.tables[[row for row, _, _ in spans]]
    _, slots = locate(where, lengths, tables, len(query), case.keys.shape[1])
    plan = PagedPlan(slots, where, lengths, tables, max(counts), is_batch_invariant=True)
    return list(paged_attention.attend(query, case.keys, case.values, plan).split(counts))


@pytest.mark.parametrize("seed", range(4))
def test_exact_plans_attend_as_float64_does(seed, dtype, poisoned):
    chance = random.Random(seed)
    rows = [
        (1, 40),
        (9, 9),
        (0, 0),
        (1, 1),
        (7, 50),
        (0, 30),
        (chance.randint(1, 40), 129),
    ]
    chance.shuffle(rows)
    case = make_case(
        rows if seed else [(1, 3), (1, 70)],
        group=[1, 2, 4, 7][seed % 4],
        head_dim=[16, 64, 80][seed % 3],
        block_size=chance.choice([8, 16, 64, 128]),
        dtype=dtype,
        seed=seed,
    )
    context = attend(case)
    case.check(context)
    if dtype == torch.float32:
        twin = reference.attend(case.query, case.keys, case.values, case.plan())
        torch.testing.assert_close(context, twin, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("group", "block_size"), [(1, 8), (4, 64)])
def test_a_token_attends_alike_in_prompts_chunks_crowds_and_alone(group, block_size, dtype):
    shape = {
        "group": group,
        "num_kv_heads": 1,
        "head_dim": 16,
        "block_size": block_size,
    }
    case = make_case([(80, 80), (19, 19), (5, 5)], **shape, dtype=dtype)
    together = attend_some(case, [(0, 0, 80), (1, 0, 19), (2, 0, 5)])
    (at_once,) = attend_some(case, [(0, 0, 80)])
    assert torch.equal(at_once, together[0])
    for first, stop in ((0, 33), (33, 34), (34, 80), (64, 80)):
        crowd = [(1, 0, 19), (0, first, stop), (2, 4, 5)]
        beside, chunk, one = attend_some(case, crowd)
        assert torch.equal(chunk, at_once[first:stop]), (first, stop)
        assert torch.equal(beside, together[1]) and torch.equal(one, together[2][4:])
    for place in (0, 31, 64, 79):
        (alone,) = attend_some(case, [(0, place, place + 1)])
        _, among = attend_some(case, [(2, 3, 4), (0, place, place + 1)])
        assert torch.equal(alone[0], at_once[place]) and torch.equal(among[0], at_once[place])


def test_a_token_does_not_attend_alike_where_keys_are_split():
    """Otherwise the test above could not fail."""
    case = make_case([(1, 200)])
    whole, cut = (
        paged_attention.attend(case.query, case.keys, case.values, case.plan(num_splits))
        for num_splits in (1, 4)
    )
    assert not torch.equal(whole, cut)


def test_an_exact_plan_has_one_split_and_keeps_its_word_on_another_device():
    plan = replace(make_case([(1, 200)]).plan(), is_batch_invariant=True)
    assert plan.to(torch.device(DEVICE)).is_batch_invariant
    with pytest.raises(AssertionError):
        replace(plan, num_splits=2)


def test_the_tile_of_an_exact_plan_is_that_of_every_length(dtype):
    tiles = {
        paged_attention.choose_tile(longest, dtype, 128, is_batch_invariant=True)
        for longest in (1, 2, 4096)
    }
    assert len(tiles) == 1


def test_products_are_the_kernels_on_a_gpu_and_blocks_of_rows_on_a_cpu(monkeypatch):
    torch.manual_seed(1)
    x, weight, bias = torch.randn(37, 48), torch.randn(40, 48), torch.randn(40)
    multiplied = []
    multiply = matmul.multiply

    def counted(*operands):
        multiplied.append(operands)
        return multiply(*operands)

    monkeypatch.setattr(matmul, "multiply", counted)
    assert batch_invariant.multiplies_by_kernel(torch.device("cuda"))
    by_blocks = batch_invariant.multiply(x, weight, bias)
    assert not multiplied
    monkeypatch.setattr(batch_invariant, "multiplies_by_kernel", lambda device: True)
    by_kernel = batch_invariant.multiply(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE))
    assert len(multiplied) == 1
    for y in (by_blocks, by_kernel.cpu()):
        torch.testing.assert_close(y, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.fixture
def tiles(monkeypatch):
    """Collect the tiles that attention is computed with."""
    choose, chosen = paged_attention.choose_tile, set()

    def choose_tile(*case: object, **options: object) -> paged_attention.AttentionTile:
        chosen.add(choose(*case, **options))
        return choose(*case, **options)

    monkeypatch.setattr(paged_attention, "choose_tile", choose_tile)
    return chosen


@pytest.fixture
def drive(tmp_path_factory, monkeypatch):
    """Return a driver of a new exact engine on the kernels over a tiny Qwen3."""
    monkeypatch.setattr(
        batch_invariant, "multiplies_by_kernel", lambda device: True
    )  # on a CPU too
    path = tmp_path_factory.mktemp("qwen3")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1}
    write_model(path, "qwen3", hidden_size=32, intermediate_size=32, **heads)

    def drive(**settings: object) -> Driver:
        defaults = {"num_blocks": 60, "block_size": 8, "threads": 1, "dtype": "float32"}
        config = EngineConfig(
            str(path),
            device=DEVICE,
            deterministic=True,
            attention_backend="triton",
            **(defaults | settings),
        )
        return Driver(Engine(config, lambda stage, fraction: None))

    return drive


def ask(driver: Driver, resume: tuple[int, ...] = ()) -> list[tuple]:
    """Ask for a sampled answer with log-probabilities: they would show a single differing bit."""
    driver.add(
        0,
        PROMPT,
        max_tokens=NEW_TOKENS,
        temperature=1.0,
        seed=11,
        logprobs=5,
        resume=(resume,) if resume else (),
    )
    driver.run()
    return [(c.position, c.token_ids, c.logprobs) for c in driver.chunks[0]]


def crowd(driver: Driver, count: int) -> None:
    draw = random.Random(3)
    for key in range(1, count + 1):
        prompt = [draw.randrange(5, 300) for _ in range(draw.randrange(1, 30))]
        driver.add(key, prompt, max_tokens=draw.randrange(2, 6))


def test_an_answer_is_the_same_alone_in_a_crowd_in_chunks_and_resumed(drive, tiles):
    expected = ask(drive())
    assert len(expected) == NEW_TOKENS

    crowded = drive()
    crowd(crowded, 3)
    assert ask(crowded) == expected

    assert ask(drive(max_num_seqs=4, max_num_batched_tokens=13)) == expected

    tokens = tuple(token for _, ids, _ in expected for token in ids)
    resumed = drive()
    crowd(resumed, 1)
    assert ask(resumed, tokens[:2]) == expected[2:]
    assert len(tiles) == 1  # for prompts and for single tokens
