"""A rank's part of a checkpoint, in every form that weights have on disk and in memory."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import MODELS, write_model
from tests.model.packers import CompressedPacker, Fp8Packer, Packer
from tests.model.twins import change_tensors, write_twins
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.shard_plan import Cut
from workers.errors import ConfigError
from workers.model.linear.linear import Linear
from workers.model.loader import load_config, load_weights
from workers.model.native.native import Native
from workers.model.parallel import sharded_tensor
from workers.model.parallel.sharded_tensor import ShardedTensor

RANKS = 2
PACKED = [
    ("qwen2", Packer()),
    ("qwen3_moe", Packer()),
    ("qwen3_moe", Packer(group_size=-1)),
    ("qwen2", Packer("gptq", 32, sym=True)),
    ("qwen3", Packer("gptq", desc_act=True)),
    ("qwen3", Packer("gptq", 32, bits=8, sym=True)),
    ("qwen2", Packer("gptq", version="gptq_v2", desc_act=True)),
    ("qwen3_5_moe", Packer("gptq", 8)),
    ("qwen3", Fp8Packer((16, 16))),
    ("qwen3_moe", Fp8Packer(None)),
    ("qwen3_next", Fp8Packer((8, 8))),
    ("qwen3", CompressedPacker()),
    ("qwen3", CompressedPacker(symmetric=False)),
    ("qwen3", CompressedPacker(actorder="group")),
    ("qwen2", CompressedPacker("int-quantized", 8, "channel")),
    ("qwen3_5", CompressedPacker("float-quantized", 8, "channel", is_float=True)),
    ("qwen3", CompressedPacker("int-quantized", 8, "tensor", symmetric=False)),
    ("qwen3", CompressedPacker("float-quantized", 8, "block", block=(16, 16), is_float=True)),
]


def name_of(value):
    if isinstance(value, str):
        return value
    kind = getattr(value, "method", "") or getattr(value, "form", "fp8")
    return f"{kind}-{getattr(value, 'strategy', '') or getattr(value, 'group_size', '')}"


def load_rank(path, rank, *, by_expert=False, **more):
    """Return the model of a rank."""
    checkpoint = replace(Checkpoint.at(path), num_ranks=RANKS, rank=rank, by_expert=by_expert)
    arguments = torch.float32, torch.device("cpu"), lambda stage, fraction: None
    return load_weights(checkpoint, load_config(checkpoint), *arguments, **more)


@pytest.mark.parametrize("by_expert", [False, True], ids=["by-width", "by-expert"])
@pytest.mark.parametrize("name", MODELS)
def test_a_rank_reads_its_cuts_of_the_whole_weights(model_of, name, by_expert):
    path, _ = model_of(name)
    whole = Checkpoint.at(path)
    if by_expert and "num_experts" not in whole.config.values:
        pytest.skip("no experts")
    parts = [load_rank(path, rank, by_expert=by_expert).state_dict() for rank in range(RANKS)]
    for key, tensor in model_of(name)[1].state_dict().items():
        shards = [part[key] for part in parts]
        shrunk = [a for a in range(tensor.dim()) if shards[0].shape[a] < tensor.shape[a]]
        if not shrunk:
            assert all(torch.equal(shard, tensor) for shard in shards), key
        elif key.endswith(("in_proj_qkv.weight", "conv1d.weight", "gate_up_proj")):
            rows = sorted(map(tuple, tensor.flatten(0, -2).tolist()))
            found = [row for shard in shards for row in shard.flatten(0, -2).tolist()]
            assert sorted(map(tuple, found)) == rows, key
        else:
            assert torch.equal(torch.cat(shards, shrunk[0]), tensor), key


@pytest.mark.parametrize(("name", "packer"), PACKED, ids=name_of)
def test_a_part_of_packed_weights_is_that_of_their_unpacked_twin(twins, name, packer):
    packed, plain = twins(name, packer)
    for rank in range(RANKS):
        found, expected = (load_rank(path, rank).state_dict() for path in (packed, plain))
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize(
    ("name", "packer"),
    [
        ("qwen2", Packer(group_size=32)),
        ("qwen2", Packer("gptq", 32, sym=True)),
        ("qwen3", CompressedPacker()),
        ("qwen2", CompressedPacker("int-quantized", 8, "channel")),
    ],
    ids=name_of,
)
def test_parts_stay_in_as_few_bits_as_the_whole(twins, name, packer):
    if Native.load(torch.float32) is None:
        pytest.skip("the functions need a C compiler")
    packed, plain = twins(name, packer)
    for rank in range(RANKS):
        kept, expected = load_rank(packed, rank, kept_by="native"), load_rank(plain, rank)
        for key, module in kept.named_modules():
            if key.endswith(("q_proj", "o_proj", "down_proj")):
                assert not isinstance(module.weight, torch.Tensor), key
                weight = expected.get_submodule(key).weight
                found = Linear(module.weight)(torch.eye(weight.shape[1]))
                torch.testing.assert_close(found.T, weight)


def test_packed_groups_that_a_cut_would_break_are_refused_by_what_is_possible(tmp_path):
    write_model(tmp_path / "model", "qwen3_moe", moe_intermediate_size=192)
    packed, _ = write_twins(tmp_path / "model", tmp_path, Fp8Packer())
    words = "experts.0.gate_proj is packed by 128 outputs, which a cut would break; .* one of 1$"
    with pytest.raises(ConfigError, match=words):
        load_rank(packed, 0)
    assert load_rank(packed, 0, by_expert=True)


def test_no_more_of_a_file_is_read_than_a_rank_holds(tmp_path, monkeypatch):
    write_model(tmp_path, "qwen3", num_hidden_layers=1)
    checkpoint = replace(Checkpoint.at(tmp_path), num_ranks=RANKS)
    read = []

    class Watched(ShardedTensor):
        def __getitem__(self, index):
            found = super().__getitem__(index)
            read.append(found.numel())
            return found

    monkeypatch.setattr(sharded_tensor, "ShardedTensor", Watched)
    arguments = torch.float32, torch.device("cpu"), lambda stage, fraction: None
    load_weights(checkpoint, load_config(checkpoint), *arguments)
    plan, shapes = checkpoint.shard_plan, checkpoint.weights.shapes
    cut = {name for name, shape in shapes.items() if plan.cut(name, shape)}
    expected = sum(torch.Size(plan.shape(name, shapes[name])).numel() for name in cut)
    assert sum(read) == expected


def test_one_of_a_stack_is_read_alone():
    read = []

    class Slice:
        def __getitem__(self, index):
            read.append(index)
            return torch.arange(24).view(8, 3)[index]

        def get_shape(self):
            return [8, 3]

    part = ShardedTensor(Slice(), Cut(0, ((2, 4), (6, 8))))
    assert [part[number].tolist()[0] // 3 for number in range(4)] == read == [2, 3, 6, 7]
    with pytest.raises(IndexError):
        part[4]


@pytest.mark.parametrize("rank", range(RANKS))
def test_packed_rows_of_the_vocabulary_that_are_filled_up_are_refused_by_every_rank(rank, tmp_path):
    write_model(tmp_path, "qwen3", vocab_size=257, tie_word_embeddings=False)
    plan = replace(Checkpoint.at(tmp_path), num_ranks=RANKS, rank=rank).shard_plan
    packing = SimpleNamespace(parts=lambda shape: ())
    assert "257 rows" in plan._broken_unit("lm_head", packing, (257, 8))
    assert not plan._broken_unit("lm_head", packing, (258, 8))


def test_an_order_of_inputs_that_was_never_written_is_none_of_a_part_either(tmp_path):
    write_model(tmp_path / "model", "qwen2")
    packed, plain = write_twins(tmp_path / "model", tmp_path, Packer("gptq", 32))
    names = [name for name in load_file(packed / "model.safetensors") if name.endswith("g_idx")]
    change_tensors(packed, **{name: torch.zeros_like for name in names})
    for rank in range(RANKS):
        found, expected = (load_rank(path, rank).state_dict() for path in (packed, plain))
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
