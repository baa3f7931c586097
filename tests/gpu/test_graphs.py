"""Recorded CUDA graphs compute what the decoder computes, and cost no memory as they go on.

Run by tests/gpu/check.py, or alone with QWENAPI_TEST_DEVICE=cuda. Not run yet: no GPU was there.
"""

import os
import random

import pytest
import torch

if not torch.cuda.is_available() or os.environ.get("QWENAPI_TEST_DEVICE") != "cuda":
    pytest.skip("needs a GPU, and QWENAPI_TEST_DEVICE=cuda", allow_module_level=True)

from tests.kernels.graph_world import Recorder, World  # noqa: E402

NUM_STEPS = 50
# Of logits, relative to their length: a padded product adds in another order.
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
DIMENSIONS = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
}


@pytest.fixture(params=["dense", "hybrid"])
def kind(request):
    """The dimensions of a model whose layers attend, or but for the last have a state."""
    if request.param == "dense":
        return DIMENSIONS
    layers = {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    states = {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "head_dim": 256}
    return DIMENSIONS | layers | states | {"is_hybrid": True}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def world(request, kind):
    return World(
        num_sequences=40,
        max_model_len=1024,
        block_size=16,
        num_blocks=40 * 16 + 1,
        device="cuda",
        dtype=request.param,
        is_batch_invariant=False,
        for_kernels=True,
        **kind,
    )


def counts(chance: random.Random, world: World) -> list[int]:
    """Return how many tokens each sequence goes on by: often one, sometimes a piece of a prompt."""
    is_decode = chance.random() < 0.7
    num_rows = chance.choice([1, 2, 3, 7, 8, 9, 24, 40])
    chosen = [1 if is_decode or chance.random() < 0.7 else 9 for _ in range(num_rows)]
    return [count if world.lengths[row] < 240 else 0 for row, count in enumerate(chosen)] + [1]


def test_graphs_on_equal_graphs_off_over_changing_batches(world):
    chance = random.Random(1)
    recorder = Recorder()
    recorded, called = world.graphs(), world.graphs(recorder)
    world.empty_states()
    for _ in range(NUM_STEPS):
        flat = world.flat(*counts(chance, world)[: world.num_sequences])
        before = world.snapshot()
        expected = world.eager(flat).double()
        world.restore(before)
        logits = recorded.forward(flat).clone()
        written = world.snapshot()
        world.restore(before)
        assert torch.equal(logits, called.forward(flat))
        for part, same in zip(written, world.snapshot(), strict=True):
            # NaN where nothing was written; padding writes to the first slot.
            assert torch.equal(*(p.flatten(0, 1)[1:].nan_to_num(nan=9e3) for p in (part, same)))
        error = (logits.double() - expected).norm() / expected.norm()
        assert float(error) < LIMITS[logits.dtype]
    assert recorder.count > 4


def test_a_graph_goes_on_without_more_memory(world):
    graphs = world.graphs()
    world.empty_states()
    flat = world.flat(1, 1, 1)
    graphs.forward(flat)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(200):
        logits = graphs.forward(flat)
    torch.cuda.synchronize()
    del logits
    assert torch.cuda.memory_allocated() == before


def test_what_cannot_be_recorded_leaves_a_decoder_that_goes_on(world, caplog):
    forward = world.decoder.forward

    def looking(token_ids, positions, plan, rows, states):
        int(token_ids[0])  # waits for the device, which no graph can
        return forward(token_ids, positions, plan, rows, states)

    world.empty_states()
    graphs, stream = world.graphs(), torch.cuda.current_stream()
    flat = world.flat(1, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.decoder, "forward", looking)
        assert graphs.forward(flat) is None and graphs.forward(flat) is None
    assert torch.cuda.current_stream() == stream
    assert len(caplog.records) == 1
    assert world.eager(flat).isfinite().all()
    check_cached_memory_is_freed()


def check_cached_memory_is_freed() -> None:
    """Check that memory torch has cached becomes a tensor it does not fit, if there is no other."""
    gib = 1 << 30
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3 * gib) / total)
    try:
        for size in (2 * gib, 5 * gib // 2):
            torch.empty(size, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
