"""Hybrid models load as they are published, text and vision in one folder, and as text alone."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)

from qwenapi.doctor.memory import Room, find_room, make_plan
from qwenapi.doctor.report import check_model
from qwenapi.settings.table import Settings
from tests.engine.conftest import DIMENSIONS, EOS, HYBRID, MIXTURE, Driver, disturb_norms
from tests.engine.test_hybrid import NEAR_TIE, prompt_of
from tests.engine.test_parity import Comparison
from tests.model.packers import Packer
from tests.model.twins import write_twins
from workers.checkpoint.checkpoint import Checkpoint
from workers.config import EngineConfig
from workers.engine import start as start_module
from workers.engine.engine import Engine
from workers.errors import ConfigError, ModelError
from workers.model.capacity import resolve_limits

PUBLISHED = {
    "qwen3_5": (Qwen3_5ForConditionalGeneration, Qwen3_5Config, HYBRID),
    "qwen3_5_moe": (Qwen3_5MoeForConditionalGeneration, Qwen3_5MoeConfig, HYBRID | MIXTURE),
}
VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48,
          "out_hidden_size": 64, "num_position_embeddings": 16}  # fmt: skip


def write_published(path, name, *, tied=False):
    """Write a model with its vision tower, and a weight of multi-token prediction beside it."""
    model_class, config_class, own = PUBLISHED[name]
    text = DIMENSIONS | own | {"tie_word_embeddings": tied}
    if name == "qwen3_5_moe":
        del text["intermediate_size"]
    torch.manual_seed(20)
    config = config_class(text_config=text, vision_config=VISION, tie_word_embeddings=tied)
    model = model_class(config).eval()
    disturb_norms(model)
    model.save_pretrained(path)
    save_file({"mtp.norm.weight": torch.zeros(64)}, path / "mtp.safetensors")
    written = json.loads((path / "config.json").read_text())
    written["text_config"].pop("eos_token_id", None)
    (path / "config.json").write_text(json.dumps(written))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 3]}))
    Tokenizer(models.BPE()).save(str(path / "tokenizer.json"))
    return model


def start(path, **changes):
    defaults = {"device": "cpu", "dtype": "float32", "num_blocks": 60, "threads": 2}
    config = EngineConfig(str(path), **(defaults | changes))
    return Driver(Engine(config, lambda stage, fraction: None))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_text_of_a_published_model_is_served_without_its_tower(tmp_path, name, tied):
    model = write_published(tmp_path, name, tied=tied)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert any(name.startswith("model.language_model.layers.0.linear_attn.") for name in names)
    assert any(name.startswith("model.visual.") for name in names)
    driver = start(tmp_path)
    card = driver.engine.card
    assert card.architecture == type(model).__name__
    assert (card.vocab_size, card.eos_token_ids) == (320, (EOS, 3))
    comparison = Comparison(model, NEAR_TIE)
    for length in (5, 130):
        driver.add(length, prompt_of(length))
        comparison.check(prompt_of(length), driver.run().tokens(length))
    comparison.report()


def test_experts_in_two_tensors_a_layer_load_as_they_are_published(tmp_path):
    model = write_published(tmp_path, "qwen3_5_moe")
    file = tmp_path / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if ".experts." not in name}
    for name, tensor in model.named_parameters():
        if ".experts." in name:
            tensors[name] = tensor.detach().contiguous()
    save_file(tensors, file, {"format": "pt"})
    assert tensors["model.language_model.layers.0.mlp.experts.gate_up_proj"].shape == (8, 64, 64)
    driver = start(tmp_path)
    driver.add(0, prompt_of(130))
    comparison = Comparison(model, NEAR_TIE)
    comparison.check(prompt_of(130), driver.run().tokens(0))


def test_the_end_tokens_of_a_text_config_count(tmp_path):
    write_published(tmp_path, "qwen3_5")
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint.at(tmp_path)
    assert checkpoint.eos_token_ids == (7,)
    assert checkpoint.config.context_length == DIMENSIONS["max_position_embeddings"]


def test_a_missing_weight_of_the_text_is_named(tmp_path):
    write_published(tmp_path, "qwen3_5")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 8, "layer_types": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"layers\.4\."):
        start(tmp_path)


FP8_REFUSED = "quantization = 'fp8' is not for hybrid models; leave it out"
EXACT_REFUSED = "--deterministic is for hybrid models on a CPU only; leave it out"


def test_what_hybrid_models_cannot_have_is_refused_in_one_sentence(tmp_path, monkeypatch):
    write_published(tmp_path, "qwen3_5")
    with pytest.raises(ConfigError, match=FP8_REFUSED):
        start(tmp_path, quantization="fp8")
    monkeypatch.setattr(start_module, "choose_device", lambda *_: torch.device("cuda"))
    with pytest.raises(ConfigError, match=EXACT_REFUSED):
        start(tmp_path, deterministic=True)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [({"quantization": "fp8"}, FP8_REFUSED), ({"deterministic": True}, EXACT_REFUSED)],
)
def test_doctor_refuses_it_in_the_same_sentence(tmp_path, flags, sentence):
    write_published(tmp_path, "qwen3_5")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    settings = replace(Settings(), model=str(tmp_path), device="cuda", **flags)
    *_, last = check_model(settings)
    what, remedy = sentence.split("; ")
    assert what in last.sentence and remedy in last.sentence


def test_doctor_counts_packed_weights_where_kernels_keep_them(tmp_path):
    write_published(tmp_path / "plain", "qwen3_5")
    packed, _ = write_twins(tmp_path / "plain", tmp_path / "twins", Packer(group_size=32))
    checkpoint, gpu = Checkpoint.at(packed), Room("GPU", True, 1 << 30, 1 << 30)
    weights = checkpoint.weights

    def num_bytes(**changes: object) -> int:
        settings = replace(Settings(), dtype="bfloat16", language_model_only=True, **changes)
        return make_plan(settings, weights, checkpoint.config, gpu).weights

    assert num_bytes() == weights.kept_bytes(2, "kernels")
    assert num_bytes(num_speculative_tokens=2) == 2 * weights.num_parameters > num_bytes()


class TestWhoComputes:
    """Kernels on CUDA, but for what they cannot do; what is installed is attention's to say."""

    @pytest.fixture
    def uses(self, monkeypatch):
        monkeypatch.setattr(start_module, "uses_kernels", lambda asked, device: asked != "torch")

        def uses(**changes) -> bool:
            config = EngineConfig("a folder", **changes)
            return start_module._uses_kernels(config, torch.device("cuda"), is_hybrid=True)

        return uses

    def test_a_hybrid_model_on_cuda_has_kernels(self, uses, caplog):
        assert uses() and uses(attention_backend="triton")
        assert not uses(attention_backend="torch") and not caplog.records

    def test_with_drafts_it_has_torch_and_a_line_in_the_log(self, uses, caplog):
        assert not uses(num_speculative_tokens=2)
        [record] = caplog.records
        assert "a hybrid model with drafts is computed by torch on cuda" in record.message

    @pytest.mark.parametrize("changes", [{"num_speculative_tokens": 2}, {"deterministic": True}])
    def test_kernels_asked_for_in_vain_are_refused(self, uses, changes):
        with pytest.raises(ConfigError, match="drafts or --deterministic; leave one out"):
            uses(attention_backend="triton", **changes)


MIB = 1 << 20


def limits(tmp_path, free=400 * MIB, slot=MIB, **changes):
    """Return the limits of a CPU that gives a quarter of its memory, with blocks of 64 KiB."""
    config = EngineConfig(str(tmp_path), **changes)
    if not (tmp_path / "config.json").exists():
        write_published(tmp_path, "qwen3_5")
    longest = Checkpoint.at(tmp_path).config.context_length
    return resolve_limits(config, longest, torch.device("cpu"), MIB // 16, free, slot)


def test_slots_and_snapshots_are_weighed_against_blocks(tmp_path):
    found = limits(tmp_path, max_num_seqs=16)
    held = found.num_state_slots * MIB + found.num_blocks * MIB // 16
    assert 95 * MIB < held <= 100 * MIB
    assert found.max_num_seqs == 16
    # One for each sequence and trash, a few more, and one for 2,048 tokens of the cache.
    assert found.num_state_slots == 17 + 8 + found.num_blocks * 32 // 2048


def test_drafts_have_slots_of_their_own(tmp_path):
    plain = limits(tmp_path, max_num_seqs=16)
    found = limits(tmp_path, max_num_seqs=16, num_speculative_tokens=2)
    spent = 2 * 8 * MIB // (MIB // 16 + MIB * 32 // 2048)
    assert found.num_blocks == pytest.approx(plain.num_blocks - spent, abs=2)
    assert found.num_state_slots == 17 + 8 + 16 + found.num_blocks * 32 // 2048
    with pytest.raises(ConfigError, match="16 more of them are for drafts"):
        limits(tmp_path, slot=3 * MIB, num_speculative_tokens=2)


def test_states_that_take_half_the_memory_bound_the_sequences(tmp_path):
    found = limits(tmp_path)
    assert found.max_num_seqs == 50 - 1 - 8
    assert found.num_state_slots * MIB + found.num_blocks * MIB // 16 <= 100 * MIB


def test_a_fraction_says_how_much_is_states(tmp_path):
    found = limits(tmp_path, max_num_seqs=4, state_memory_fraction=0.3)
    assert (found.max_num_seqs, found.num_state_slots) == (4, 30)
    assert found.num_blocks == 70 * 16
    assert limits(tmp_path, kv_cache_gb=1.0, state_memory_fraction=0.5).num_state_slots == 512


def test_too_little_memory_for_one_state_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the states of one sequence take 60 MiB"):
        limits(tmp_path, slot=60 * MIB)


def test_a_model_without_states_has_the_blocks_it_had(tmp_path):
    found = limits(tmp_path, slot=0)
    assert (found.max_num_seqs, found.num_state_slots, found.num_blocks) == (256, 0, 1600)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(
    "changes",
    [
        {"max_num_seqs": 4},
        {"kv_cache_gb": 0.02},
        {"kv_cache_gb": 0.02, "num_speculative_tokens": 3, "max_num_seqs": 2},
        {"max_num_seqs": 3, "state_memory_fraction": 0.3, "kv_cache_gb": 0.02},
    ],
)
def test_the_doctor_foretells_blocks_slots_and_sequences(tmp_path, name, changes):
    write_published(tmp_path, name)
    settings = replace(Settings(), model=str(tmp_path), dtype="float32", device="cpu", **changes)
    checkpoint = Checkpoint.at(tmp_path)
    plan = make_plan(settings, checkpoint.weights, checkpoint.config, find_room(settings, 0))
    engine = Engine(replace(settings.engine_config(), threads=2), lambda stage, fraction: None)
    states = engine._blocks.states
    assert engine.card.num_blocks == plan.num_blocks
    assert (
        states.num_slots + states.num_for_drafts + 1
        == plan.state_bytes // checkpoint.config.state_bytes
    )
    assert engine._scheduler._max_num_seqs == plan.num_running
    memory = Room("memory", False, 20 << 20, 18 << 20)
    small = make_plan(settings, checkpoint.weights, checkpoint.config, memory)
    assert small.num_tokens == 0 or "kv_cache_gb" in changes
