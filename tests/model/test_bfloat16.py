"""What float32 parity does not reach: packed bfloat16 weights, and attention in tiles."""

import pytest
import torch
import torch.nn.functional as F

from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.model.attention import cpu_attention
from workers.model.linear.linear import Linear, merge


@pytest.mark.parametrize("rows", [1, 7, 200])
@pytest.mark.parametrize("biased", [False, True])
def test_a_packed_weight_multiplies_like_a_plain_one(rows, biased):
    torch.manual_seed(3)
    weight = torch.randn(96, 64).bfloat16()
    bias = torch.randn(96).bfloat16() if biased else None
    x = torch.randn(rows, 64).bfloat16()
    expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    torch.testing.assert_close(Linear(weight, bias)(x).float(), expected, rtol=0.02, atol=0.05)


def test_merged_parts_lie_side_by_side_and_lose_their_weights():
    parts = [torch.nn.Linear(8, 3), torch.nn.Linear(8, 5)]
    x = torch.randn(4, 8)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    torch.testing.assert_close(merge(parts, is_batch_invariant=False)(x), expected)
    assert all(part.weight is None and part.bias is None for part in parts)


@pytest.mark.parametrize(("tokens", "length"), [(1, 1), (5, 5), (300, 300), (130, 400)])
def test_span_attention_equals_sdpa(tokens, length):
    torch.manual_seed(3)
    query = torch.randn(2, 3, tokens, 16)
    keys, values = torch.randn(2, length, 16), torch.randn(2, length, 16)
    visible = torch.arange(length) <= torch.arange(length - tokens, length)[:, None]
    expected = F.scaled_dot_product_attention(
        query,
        keys[:, None].expand(-1, 3, -1, -1),
        values[:, None].expand(-1, 3, -1, -1),
        visible,
        scale=1.0,
    )
    torch.testing.assert_close(cpu_attention.attend_span(query, keys, values), expected)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "qwen3_moe"])
@torch.no_grad()
def test_a_bfloat16_engine_gives_likely_tokens(model_of, drive, prompts, name):
    path, reference = model_of(name)
    config = EngineConfig(str(path), dtype="bfloat16", device="cpu", num_blocks=60, threads=2)
    driver = drive(name)
    driver.engine = Engine(config, lambda stage, fraction: None)
    assert driver.engine.card.dtype == "bfloat16"
    for key, prompt in enumerate(prompts(6)):
        driver.add(key, prompt, logprobs=1)
    driver.run()
    for key, prompt in enumerate(prompts(6)):
        text = torch.tensor([prompt + driver.tokens(key)])
        raw = reference(text).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        for place, chunk in enumerate(driver.chunks[key]):
            [logprob] = chunk.logprobs
            assert logprob.logprob == pytest.approx(float(raw[place, logprob.token_id]), abs=0.5)
