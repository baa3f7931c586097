"""Bit rows become minus infinities, of the rows they are for alone, wherever logits are."""

import numpy as np
import pytest
import torch

from workers.engine.token_masks import MaskedRows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [64, 77, 320])
@pytest.mark.parametrize("apply", [MaskedRows._apply_on_cpu, MaskedRows._apply_on_gpu])
def test_what_is_not_allowed_is_minus_infinity_and_the_rest_is_untouched(vocabulary, dtype, apply):
    chance = np.random.default_rng(vocabulary)
    allowed = chance.random((2, vocabulary)) < 0.3
    words = np.zeros((2, -(-vocabulary // 32) * 4), np.uint8)
    packed = np.packbits(allowed, axis=1, bitorder="little")
    words[:, : packed.shape[1]] = packed
    logits = torch.randn(5, vocabulary).to(dtype)
    before = logits.clone()
    apply(MaskedRows([3, 1], torch.from_numpy(words.view(np.int32))), logits)
    for row in (0, 2, 4):
        assert torch.equal(logits[row], before[row])
    for row, cells in zip((3, 1), torch.from_numpy(allowed), strict=True):
        assert torch.equal(logits[row][cells], before[row][cells])
        assert torch.isinf(logits[row][~cells]).all()
