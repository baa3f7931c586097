"""A bucket of fixed sizes computes what the batch in it computes, to the last bit.

The decoder is an exact one: only then a row's bits do not depend on how many rows there are. What
records is a stand-in that knows no more later than a graph would.
"""

import logging
import random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="kernels need the package triton")

from tests.kernels.graph_world import VOCABULARY, Recorder, World  # noqa: E402
from workers.engine.batch_layout import flatten_rows  # noqa: E402
from workers.engine.state_manager import Kept  # noqa: E402
from workers.errors import WorkerError  # noqa: E402
from workers.model import graphs as graphs_module  # noqa: E402
from workers.model.graphs import Bucket, Graphs  # noqa: E402
from workers.model.layout.flat_batch import FlatBatch  # noqa: E402

EQUAL, NEAR = {"rtol": 0, "atol": 0}, {"rtol": 1e-4, "atol": 1e-5}


class NoHostReads(TorchDispatchMode):
    """Refuses to let the host see what a tensor holds, for which a GPU would have to be awaited.

    On a CPU `tolist` goes by unseen.
    """

    REFUSED = ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in self.REFUSED, function
        return function(*args, **(kwargs or {}))


class CheckedWorld(World):
    """Graphs, and the decoder alone to compare them with."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.recorder = Recorder()
        self.recorded = self.graphs(self.recorder)

    def check(self, flat: FlatBatch) -> None:
        """Check that the graph's logits, pages and states are those of the decoder alone."""
        before = self.snapshot()
        expected = self.eager(flat)
        written = self.snapshot()
        self.restore(before)
        with NoHostReads():
            logits = self.recorded.forward(flat)
        is_exact = self.decoder.is_batch_invariant
        assert logits.isfinite().all()
        torch.testing.assert_close(logits, expected, **(EQUAL if is_exact else NEAR))
        for part, same in zip(self.snapshot(), written, strict=True):
            # Slot 0 of the trash block is where padding is written.
            part, same = (p.flatten(0, 1)[1:] for p in (part, same))
            torch.testing.assert_close(part, same, **(EQUAL if is_exact else NEAR), equal_nan=True)


@pytest.fixture
def make_world(poisoned):
    """Return what makes worlds. Padding computes with NaN there, and not with what memory held."""
    return CheckedWorld


@pytest.fixture
def world(make_world):
    return make_world()


@pytest.fixture
def small_buckets(monkeypatch):
    """Let mixed batches be small, as Triton's interpreter is slow."""
    monkeypatch.setattr(graphs_module, "_MIXED_TOKENS", (4, 8, 16))


def test_decoding_rows_at_the_edges_of_buckets(world, monkeypatch):
    monkeypatch.setattr(graphs_module, "_DECODE_ROWS", (1, 2, 4, 8, 16))
    world.prefill(9, 1, 4, 5, 3, 8, 7, 2, 11)
    for num_rows in (1, 9, 3, 4):
        world.check(world.flat(*[1] * num_rows))
    assert world.recorder.count == 3  # 3 and 4 rows are one


def test_graphs_recorded_before_the_first_step_serve_it(world, monkeypatch):
    monkeypatch.setattr(graphs_module, "_DECODE_ROWS", (1, 2, 4, 8, 1024))
    world.recorded.warm_up()
    assert world.recorder.count == 4
    world.prefill(9, 1, 4)
    for num_rows in (3, 1, 2):
        world.check(world.flat(*[1] * num_rows))
    assert world.recorder.count == 4


def test_a_graph_serves_lengths_it_was_not_recorded_with(world):
    world.prefill(3, 2, 1)
    for _ in range(6):  # over two blocks
        world.check(world.flat(1, 1, 1))
    assert world.recorder.count == 1


def test_mixed_batches_at_the_edges_of_buckets(small_buckets, make_world):
    world = make_world()
    world.prefill(5, 1)
    for counts in ((1, 3), (1, 1, 3), (0, 0, 2), (1, 0, 0, 15)):  # 4, 5, 2 and 16 tokens
        world.check(world.flat(*counts))
    assert world.recorder.count == 3


def test_a_mixed_batch_in_a_bucket_of_its_real_size(world):
    world.prefill(4, 9)
    world.check(world.flat(1, 1, 11))
    assert world.recorder.count == 1


def test_drafts_are_sampled_behind_and_chunks_of_prompts_not_at_all(small_buckets, make_world):
    world = make_world()
    world.prefill(6, 3)
    flat = world.flat(4, 3, num_samples=4)
    assert flat.last_tokens.tolist() == list(range(7))
    world.check(flat)
    flat = world.flat(0, 0, 9, num_samples=0)
    assert world.recorded.forward(flat).shape == (0, VOCABULARY)


@pytest.mark.parametrize("seed", range(2))
def test_any_batches_one_after_another(seed, small_buckets, make_world):
    world = make_world(num_sequences=5)
    chance = random.Random(seed)
    for is_decode in (False, True, False, True):
        counts = [chance.choice([0, 1, 1] if is_decode else [0, 1, 3]) for _ in range(4)]
        world.check(world.flat(*counts, 1))


def test_splits_and_tiles_follow_from_the_bucket_and_not_from_the_step(
    small_buckets, monkeypatch, make_world
):
    world = make_world(is_batch_invariant=False, num_sequences=2, max_model_len=2048)
    planned, forward = [], world.decoder.forward

    def watched(token_ids, positions, plan, *rest):
        planned.append((plan.max_query, plan.num_splits, plan.is_batch_invariant))
        return forward(token_ids, positions, plan, *rest)

    world.prefill(250, 3)
    monkeypatch.setattr(world.decoder, "forward", watched)
    world.recorded.forward(world.flat(0, 1))
    world.recorded.forward(world.flat(1, 0))
    assert planned == [(1, 8, False)] * 3  # warming up, and two replays
    world.recorded.forward(world.flat(1, 4))
    assert planned[3:] == [(8, 1, False)] * 2
    monkeypatch.setattr(world.decoder, "is_batch_invariant", True)
    world.graphs(world.recorder).forward(world.flat(1, 0))
    assert planned[5:] == [(1, 1, True)] * 2


def test_an_inexact_decoder_gets_the_same_but_for_rounding(small_buckets, make_world):
    world = make_world(is_batch_invariant=False, num_sequences=2, max_model_len=2048)
    world.prefill(250, 3)
    for counts in ((1, 1), (1, 1), (1, 5)):
        world.check(world.flat(*counts))


@torch.inference_mode()
@pytest.mark.parametrize("ask", [int, bool, Tensor.item, Tensor.nonzero])
def test_a_question_to_the_device_would_be_noticed(ask):
    with pytest.raises(AssertionError), NoHostReads():
        ask(torch.ones(1))


def test_a_decoder_of_kernels_asks_nothing_of_the_host(small_buckets, make_world):
    # What padding holds gets from one layer to the next.
    world = make_world(num_sequences=2, for_kernels=True, num_hidden_layers=2)
    world.prefill(6, 3)
    for counts in ((1, 0), (1, 2)):
        world.check(world.flat(*counts))


class TestStates:
    """A hybrid model's graphs: states are those of the decoder alone, and nobody else's change."""

    @pytest.fixture
    def world(self, small_buckets, make_world):
        options = {"is_batch_invariant": False, "for_kernels": True, "is_hybrid": True}
        world = make_world(num_sequences=5, **options)
        world.prefill(9, 1, 4, 5)
        return world

    def test_decoding_rows_in_buckets_with_padding(self, world, monkeypatch):
        monkeypatch.setattr(graphs_module, "_DECODE_ROWS", (4, 8))
        for num_rows in (3, 1, 4):
            world.check(world.flat(*[1] * num_rows))
        assert world.recorder.count == 1

    def test_a_graph_recorded_on_nothing_but_padding_leaves_all_states(self, world):
        before = world.snapshot()
        world.recorded.warm_up()
        for part, same in zip(world.snapshot(), before, strict=True):
            torch.testing.assert_close(part[1:], same[1:], rtol=0, atol=0, equal_nan=True)
        world.check(world.flat(1, 1, 1))

    def test_mixed_batches_after_larger_ones(self, world):
        for counts in ((1, 1, 9), (1, 0, 0, 2), (0, 5), (1, 1, 1)):
            world.check(world.flat(*counts))

    def test_copies_are_kept_behind_decoded_tokens_and_on_the_way(self, world):
        free = [slot for slot in range(1, 11) if world.states[0][slot].isnan().all()]
        for index, (count, slot) in enumerate(zip((1, 1, 5), free, strict=False)):
            position = world.lengths[index] + count
            world.sequences[index].table.state.kept.append(Kept(position, slot, False))
        world.check(world.flat(1, 1, 5))
        for slot in free[:3]:
            assert world.states[0][slot].isfinite().all()
        world.check(world.flat(1, 1, 5))  # what is kept no more is not copied again


def test_token_ids_may_be_put_in_place_on_the_device(world):
    world.prefill(5, 2)
    flat = world.flat(1, 1)
    known = world.recorded.forward(flat).clone()
    unknown = flat._replace(token_ids=torch.zeros_like(flat.token_ids))
    assert not torch.equal(world.recorded.forward(unknown), known)
    unknown.token_ids[torch.tensor([0, 1])] = flat.token_ids
    world.check(unknown)
    assert torch.equal(world.recorded.forward(unknown), known)


@pytest.mark.parametrize(
    ("num_tokens", "num_rows", "num_samples", "expected"),
    [
        (1, 1, 1, (1, 1, True)),
        (3, 3, 3, (3, 3, True)),
        (17, 17, 0, (24, 24, True)),
        (256, 256, 256, (256, 256, True)),
        (257, 257, 257, None),
        (2, 1, 1, (64, 64, False)),
        (65, 2, 2, (128, 128, False)),
        (300, 256, 200, (512, 256, False)),
        (300, 257, 200, None),
        (2048, 3, 257, None),
        (2049, 1, 1, None),
    ],
)
def test_the_smallest_bucket_that_holds_a_batch(num_tokens, num_rows, num_samples, expected):
    max_query = 1 if num_rows == num_tokens else num_tokens
    sizes = (num_tokens,), (num_rows + 1,), (num_rows,), (num_rows, 1), (num_samples,), (0,), (0,)
    flat = FlatBatch(*(torch.empty(size, device="meta") for size in sizes), max_query)
    assert Bucket.holding(flat, 256) == expected


def test_what_fits_no_bucket_is_left_to_the_caller_and_untouched():
    world = CheckedWorld(num_sequences=3, max_model_len=16)
    world.prefill(8, 17, 1)
    before = world.snapshot()
    assert world.recorded.forward(world.flat(0, 1)) is None  # longer than max_model_len
    flat = flatten_rows(world.rows(1, 0, 1) * 3, world.block_size, world.device)
    assert world.recorded.forward(flat) is None  # 6 rows, where 3 were said to be the most
    assert world.recorder.count == 0
    for part, same in zip(world.snapshot(), before, strict=True):
        assert torch.equal(part.view(torch.int32), same.view(torch.int32))


def test_after_a_failed_recording_there_are_no_graphs_and_one_warning(world, caplog):
    world.prefill(5, 2)
    with caplog.at_level(logging.WARNING):
        world.check(world.flat(1, 1))
        world.recorder.is_broken = True
        world.check(world.flat(1, 1))  # recorded before
        assert world.recorded.forward(world.flat(1)) is None
        world.recorder.is_broken = False
        assert world.recorded.forward(world.flat(1)) is None
        assert world.recorded.forward(world.flat(1, 1)) is None
    [record] = caplog.records
    assert "no CUDA graphs from now on" in record.message and "num_tokens=1" in record.message
    assert "operation not permitted" in caplog.text
    caplog.clear()
    assert not world.recorder.recorded, "what was recorded still holds memory"


def test_a_failed_recording_ends_a_rank_that_shares_its_model(world):
    world.prefill(5)
    world.check(world.flat(1))
    graphs = Graphs(world.decoder, 64, 4, world.recorder, is_shared=True)
    world.recorder.is_broken = True
    with pytest.raises(WorkerError, match="num_tokens=1.*operation not permitted.*--enforce-eager"):
        graphs.forward(world.flat(1))


def test_layers_on_several_devices_have_no_graphs():
    world = CheckedWorld()
    devices = [world.device, torch.device("meta")]
    decoder = SimpleNamespace(device=world.device, layer_devices=devices)
    graphs = Graphs(decoder, 64, 4, world.recorder)
    assert graphs.forward(world.flat(1)) is None


def test_packed_parts_are_those_of_the_rows_and_aligned():
    world = CheckedWorld()
    world.prefill(6, 0, 2)
    rows = world.rows(1, 3, 1)
    flat = flatten_rows(rows, world.block_size, world.device)
    assert flat.token_ids.tolist() == [token for row in rows for token in row.token_ids]
    assert flat.starts.tolist() == [0, 1, 4, 5] and flat.lengths.tolist() == [7, 3, 3]
    assert flat.last_tokens.tolist() == [0, 3, 4] and flat.max_query == 3
    first, second, third = (row.sequence.table.ids for row in rows)
    assert flat.tables.tolist() == [first[:2], [second[0], 0], [third[0], 0]]
    assert all(part.data_ptr() % 16 == 0 and part.dtype == torch.int32 for part in flat[:5])
    positions, plan = flat.plan_attention(world.num_kv_heads, world.block_size)
    assert positions.tolist() == [6, 0, 1, 2, 2]
    places = [first[1] * 4 + 2, *(second[0] * 4 + place for place in range(3)), third[0] * 4 + 2]
    assert plan.slots.tolist() == places
