"""What a rank holds: all ranks together have every weight, and each a smaller model of its kind."""

from dataclasses import replace

import pytest

from tests.engine.conftest import HYBRIDS, MODELS, write_model
from workers.checkpoint.checkpoint import Checkpoint
from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.errors import ConfigError

PLANS = [(2, False), (4, False), (2, True)]


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def checkpoint(tmp_path, name):
    changes = {"num_key_value_heads": 2, "vocab_size": 321}
    if name in HYBRIDS:
        changes |= {"linear_num_key_heads": 4, "linear_num_value_heads": 8}
    write_model(tmp_path, name, **changes)
    return Checkpoint.at(tmp_path)


def plans_of(checkpoint, size, by_expert=False):
    """Return the plan of each rank."""
    shared = replace(checkpoint, num_ranks=size, by_expert=by_expert)
    return [replace(shared, rank=rank).shard_plan for rank in range(size)]


def held(plan, name, shape):
    """Return which elements a rank has of a weight along the axis that is cut, or all."""
    cut = plan.cut(name, shape)
    if cut is None:
        return set(range(shape[0]))
    return {number for start, stop in cut.spans for number in range(start, stop)}


@pytest.mark.parametrize(("size", "by_expert"), PLANS)
def test_all_ranks_together_hold_every_weight(checkpoint, name, size, by_expert):
    if by_expert and "num_experts" not in checkpoint.config.values:
        pytest.skip("no experts")
    plans = plans_of(checkpoint, size, by_expert)
    for weight, shape in checkpoint.weights.shapes.items():
        holders = [plan for plan in plans if plan.local_name(weight) is not None]
        parts = [held(plan, weight, shape) for plan in holders]
        cut = holders[0].cut(weight, shape)
        axis = cut.axis if cut else 0
        assert set().union(*parts) == set(range(shape[axis])), weight
    share = sum(plan.part_of(checkpoint.weights) for plan in plans)
    assert (
        1 <= share < 1.5
    )  # norms and routers are every rank's, as heads are of which there are few


@pytest.mark.parametrize(("size", "by_expert"), PLANS)
def test_a_rank_has_the_weights_of_a_smaller_model(checkpoint, name, size, by_expert):
    if by_expert and "num_experts" not in checkpoint.config.values:
        pytest.skip("no experts")
    config, architecture = checkpoint.config, checkpoint._architecture
    for plan in plans_of(checkpoint, size, by_expert):
        found = {
            plan.local_name(weight): plan.shape(weight, shape)
            for weight, shape in checkpoint.weights.shapes.items()
            if plan.local_name(weight) is not None
        }
        small = replace(config, values={**config.values, **plan.fields()})
        expected = dict(architecture.shapes(small))
        if by_expert:
            for weight in expected:
                if weight.endswith("mlp.gate.weight"):  # chooses among all
                    expected[weight] = (plan.num_experts, config.hidden_size)
        if config.tie_word_embeddings:
            expected.pop("lm_head.weight")
        assert found == expected


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (3, "tensor_parallel_size = 3, but the model's 8 attention heads cannot be shared out"),
        (16, "choose one of 1, 2, 4, 8"),
    ],
)
def test_heads_that_cannot_be_shared_out_are_refused_with_what_can(tmp_path, size, words):
    write_model(tmp_path, "qwen3")
    with pytest.raises(ConfigError, match=words):
        _ = replace(Checkpoint.at(tmp_path), num_ranks=size).shard_plan


def test_whole_experts_are_refused_where_there_are_none(tmp_path):
    write_model(tmp_path, "qwen3")
    checkpoint = Checkpoint.at(tmp_path)
    with pytest.raises(ConfigError, match="is for mixtures of experts, and the model has none"):
        _ = replace(checkpoint, num_ranks=2, by_expert=True).shard_plan
    with pytest.raises(ConfigError, match="tensor_parallel_size is 1; leave it out"):
        replace(checkpoint, by_expert=True).check()


def test_an_engine_of_ranks_is_not_started_in_one_process(tmp_path):
    write_model(tmp_path, "qwen3")
    config = EngineConfig(str(tmp_path), device="cpu", tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="started in this one process; leave it out here"):
        Engine(config, lambda stage, fraction: None)
