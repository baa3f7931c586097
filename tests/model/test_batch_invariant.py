"""With `deterministic = true` a token's result depends on nothing beside it, to the last bit."""

import random

import pytest
import torch

from workers.model.linear import batch_invariant
from workers.model.linear.linear import Linear

NEW_TOKENS = 20
PROMPT = [5 + i * 7 % 290 for i in range(45)]


@pytest.fixture(params=["qwen2", "qwen3", "qwen3_moe", "qwen2_moe", "qwen3_5", "qwen3_next"])
def name(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


def ask(driver, key=0, resume=(), **fields):
    """Ask for a sampled answer with log-probabilities: they would show a single differing bit."""
    driver.add(
        key,
        PROMPT,
        max_tokens=NEW_TOKENS,
        temperature=1.0,
        seed=11,
        logprobs=5,
        resume=(tuple(resume),) if resume else (),
        **fields,
    )


def said(driver, key=0):
    return [(c.position, c.token_ids, c.logprobs) for c in driver.chunks[key]]


def crowd(driver, count=12):
    draw = random.Random(3)
    for key in range(1, count + 1):
        prompt = [draw.randrange(5, 300) for _ in range(draw.randrange(1, 90))]
        driver.add(key, prompt, max_tokens=draw.randrange(5, 40))


def test_a_row_of_a_product_depends_on_neither_neighbours_nor_place(dtype):
    torch.manual_seed(1)
    weight, bias = torch.randn(384, 512).to(dtype), torch.randn(384).to(dtype)
    linear = Linear(weight, bias, is_batch_invariant=True)
    row = torch.randn(1, 512).to(dtype)
    alone = linear(row)
    for rows in (2, 7, 16, 17, 64, 200):
        for place in {0, rows // 2, rows - 1}:
            x = torch.randn(rows, 512).to(dtype)
            x[place] = row[0]
            assert torch.equal(linear(x)[place], alone[0]), (rows, place)


def test_a_plain_product_does_depend_on_them():
    """Otherwise the test above could not fail."""
    torch.manual_seed(1)
    linear = Linear(torch.randn(384, 512))
    x = torch.randn(64, 512)
    assert not torch.equal(linear(x)[:1], linear(x[:1]))


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_an_activation_depends_on_no_thread_and_no_neighbour(dtype, threads):
    """Qwen2.5-0.5B's width, which threads do not share out evenly."""
    torch.manual_seed(4)
    x = torch.randn(64, 4864).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = batch_invariant.silu(x)
        alone = [batch_invariant.silu(row)[0] for row in x.split(1)]
        assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("length", [1, 31, 128, 129, 400])
def test_a_query_attends_alike_alone_and_in_a_span(dtype, length):
    torch.manual_seed(2)
    query = torch.randn(length, 8, 16).to(dtype)
    keys, values = torch.randn(2, 4, length, 16).to(dtype)
    together = batch_invariant.attend_span(query, keys, values)
    for place in {0, length // 2, length - 1}:
        seen = slice(0, place + 1)
        alone = batch_invariant.attend_span(
            query[place : place + 1], keys[:, seen], values[:, seen]
        )
        assert torch.equal(alone[0], together[place])


def test_attention_is_that_of_torch():
    torch.manual_seed(2)
    query, keys, values = torch.randn(300, 8, 16), *torch.randn(2, 4, 300, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys.repeat_interleave(2, 0)[None],
        values.repeat_interleave(2, 0)[None],
        is_causal=True,
        scale=1.0,
    )
    context = batch_invariant.attend_span(query, keys, values)
    torch.testing.assert_close(context, expected[0].transpose(0, 1), atol=1e-5, rtol=1e-5)


def test_an_answer_is_the_same_alone_in_a_crowd_in_chunks_and_resumed(drive, name, dtype):
    options = {"deterministic": True, "dtype": str(dtype).removeprefix("torch.")}
    alone = drive(name, **options)
    ask(alone)
    expected = said(alone.run())
    assert len(expected) == NEW_TOKENS

    crowded = drive(name, **options)
    crowd(crowded)
    ask(crowded)
    assert said(crowded.run()) == expected

    chunked = drive(name, **options, max_num_seqs=4, max_num_batched_tokens=13)
    ask(chunked)
    assert said(chunked.run()) == expected

    tokens = [token for _, ids, _ in expected for token in ids]
    for given in (1, 7, NEW_TOKENS - 1):
        resumed = drive(name, **options)
        crowd(resumed, 3)
        ask(resumed, resume=tokens[:given])
        assert said(resumed.run()) == expected[given:]


def test_without_it_a_crowd_is_seen_in_the_last_bits(drive, name):
    alone, crowded = drive(name), drive(name)
    crowd(crowded)
    for driver in (alone, crowded):
        ask(driver)
        driver.run()
    assert said(alone) != said(crowded)
