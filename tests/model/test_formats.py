"""Every architecture loads from every format, equal to its unpacked twin; the pages' table."""

from pathlib import Path

import pytest
import torch

from tests.engine.conftest import HYBRIDS, MODELS
from tests.engine.test_hybrid_loading import PUBLISHED, write_published
from tests.model import record
from tests.model.packers import CompressedPacker, Fp8Packer, Packer
from tests.model.twins import NOT_PACKED, check_twins, load, logits_of, write_twins
from workers.checkpoint.architectures import ARCHITECTURES
from workers.checkpoint.checkpoint import Checkpoint
from workers.model.layout.block_fp8_weight import BlockFp8Weight
from workers.model.layout.int4_weight import Int4Weight
from workers.model.native.int4_tiles import Int4Tiles
from workers.model.quantization.int8 import Int8Weight

PACKERS = {
    "fp8": Fp8Packer((48, 32)),
    "awq 4": Packer(group_size=32),
    "gptq 4": Packer("gptq", 32, sym=True),
    "gptq 8": Packer("gptq", 32, desc_act=True, bits=8),
    "compressed-tensors 4": CompressedPacker(symmetric=False),
    "compressed-tensors 8": CompressedPacker(bits=8),
    "compressed-tensors I8": CompressedPacker("int-quantized", 8, "channel"),
    "compressed-tensors F8_E4M3": CompressedPacker("float-quantized", 8, "channel", is_float=True),
}
FOURS = [form for form in PACKERS if form.endswith(" 4")]
# With a vision tower beside the text, as they are published.
SEEING = {f"{name}, published": name for name in PUBLISHED}
SEEING_SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in SEEING]
# The interpreter takes seconds for a state.
BY_KERNELS = [
    *(name for name in MODELS if name not in HYBRIDS),
    *(pytest.param(name, marks=pytest.mark.slow) for name in HYBRIDS),
    *SEEING_SLOWLY,
]


@pytest.fixture(scope="module")
def source_of(tiny_model_of, tmp_path_factory):
    """Return the folder of a tiny model, made once."""
    made: dict[str, Path] = {}

    def source_of(name: str) -> Path:
        if name not in made and name in SEEING:
            made[name] = tmp_path_factory.mktemp("published")
            write_published(made[name], SEEING[name])
        return made[name] if name in made else tiny_model_of(name)[0]

    return source_of


@pytest.fixture
def check_record(pytestconfig):
    def check_record(path: Path, how: str) -> None:
        if pytestconfig.getoption("--record"):
            record.add(path, how)
        assert record.has(path, how), "`pytest tests/model/test_formats.py --record` writes this"

    return check_record


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("name", [*MODELS, *SEEING])
def test_an_architecture_loads_from_a_format(
    source_of, tmp_path, drive, prompts, check_record, name, packer
):
    packed, plain = write_twins(source_of(name), tmp_path, packer)
    check_twins(packed, plain, drive, prompts)
    check_record(packed, "unpacked")
    check_record(plain, "as it is")


@pytest.mark.parametrize("form", [*FOURS, "compressed-tensors I8"])
@pytest.mark.parametrize("name", [*MODELS, *SEEING_SLOWLY])
def test_a_cpu_multiplies_by_weights_as_they_are_packed(
    source_of, tmp_path, prompts, check_record, name, form
):
    packed, plain = write_twins(source_of(name), tmp_path, PACKERS[form])
    prompt = prompts(1, longest=24)[0]
    kept = load(packed, kept_by="native")
    kind = Int4Tiles if form in FOURS else Int8Weight
    assert isinstance(kept.model.layers[-1].self_attn.q_proj.weight, kind)
    found, expected = logits_of(kept, prompt), logits_of(load(plain), prompt)
    # What is multiplied is rounded to 8 bits; see below for hybrid models.
    limit = 0.8 if name.startswith(HYBRIDS) else 0.1
    assert 1e-4 < float((found - expected).norm() / expected.norm()) < limit
    check_record(packed, "kept on CPUs")


@pytest.mark.parametrize("form", FOURS)
@pytest.mark.parametrize("name", BY_KERNELS)
def test_kernels_multiply_by_linears_of_4_bits(
    source_of, tmp_path, prompts, check_record, name, form
):
    pytest.importorskip("triton", reason="kernels need the package triton")
    packed, plain = write_twins(source_of(name), tmp_path, PACKERS[form])
    prompt = prompts(1, longest=24)[0]
    kept = load(packed, kept_by="kernels")
    assert isinstance(kept.model.layers[-1].self_attn.q_proj.weight, Int4Weight)
    found, expected = logits_of(kept, prompt), logits_of(load(plain), prompt)
    limit = 1e-4 if name.startswith(HYBRIDS) else 1e-5
    assert float((found - expected).norm() / expected.norm()) < limit
    check_record(packed, "kept by kernels")


@pytest.mark.parametrize("name", BY_KERNELS)
def test_kernels_multiply_by_fp8_of_blocks_of_128(source_of, tmp_path, prompts, check_record, name):
    """Weights are the very numbers; activations are rounded, to 3 bits of a mantissa."""
    pytest.importorskip("triton", reason="kernels need the package triton")
    packed, plain = write_twins(source_of(name), tmp_path, Fp8Packer())
    prompt = prompts(1, longest=24)[0]
    kept, other = load(packed, kept_by="kernels"), load(plain)
    linears = [part for part in kept.model.named_modules() if hasattr(part[1], "out_features")]
    packable = [part for part in linears if not f"{part[0]}.weight".endswith(NOT_PACKED)]
    blocks = {name: part.weight for name, part in packable}
    assert len(blocks) >= 8
    for module, weight in blocks.items():
        assert isinstance(weight, BlockFp8Weight)
        assert torch.equal(weight.unpack(torch.float32), other.model.get_submodule(module).weight)
    found, expected = logits_of(kept, prompt), logits_of(other, prompt)
    # A state carries what was rounded from token to token, and routers choose others by it; logits
    # that have nothing in common differ by 1.4.
    limit = 0.8 if name.startswith(HYBRIDS) else 0.2
    assert 1e-3 < float((found - expected).norm() / expected.norm()) < limit
    check_record(packed, "kept by kernels")


def test_the_record_has_all_architectures_and_formats():
    # The first two have the layers of Qwen3ForCausalLM, and no text to compare; the others those of
    # models without a tower, which tests/engine/test_images.py compares whole.
    assert record.read().keys() == ARCHITECTURES.keys() - {
        "Qwen3Model",
        "Qwen3ForSequenceClassification",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
    }
    assert all(seen.keys() == record.COLUMNS.keys() for seen in record.read().values())


def test_a_format_is_known_by_its_name(source_of, tmp_path):
    for form, packer in PACKERS.items():
        packed, _ = write_twins(source_of("qwen3"), tmp_path / form, packer)
        assert record.format_of(Checkpoint.at(packed)) == form
