"""Checkpoints of packings that are not loaded: one sentence says what they are, and what is loaded.

Doctor says the same, as it reads the same `Checkpoint`.
"""

import json
from dataclasses import replace

import pytest

from qwenapi.doctor.check import Outcome
from qwenapi.doctor.report import check_model
from qwenapi.settings.table import Settings
from tests.checkpoint.folders import change, write_folder
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.packing_fields import LOADED
from workers.errors import ModelError

MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model")


def refusal(folder) -> str:
    with pytest.raises(ModelError) as caught:
        Checkpoint.at(folder).check()
    words = str(caught.value)
    assert words.endswith(f": {LOADED}") and words.count(LOADED) == 1
    failed = [
        check
        for check in check_model(replace(Settings(), model=str(folder)))
        if check.outcome is Outcome.FAILURE
    ]
    assert [check.sentence for check in failed] == [words]
    return words


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "'bitsandbytes' (bitsandbytes, NF4",
        ),
        (MODELOPT, "'modelopt' (NVIDIA ModelOpt, NVFP4)"),
        ({"quant_method": "mxfp4"}, "'mxfp4' (floats of 4 bits with an exponent for 32"),
        ({"quant_method": "gguf"}, "'gguf' (GGUF, for llama.cpp)"),
        ({"quant_method": "aqlm"}, "'aqlm' (AQLM, codebooks)"),
        ({"quant_method": "auto-round", "bits": 4}, "'auto-round' (AutoRound's own format)"),
        ({"quant_method": "of-tomorrow"}, "'of-tomorrow': loaded are"),
        ({"bits": 4, "group_size": 64}, "None (MLX, for Apple's chips)"),
        ({"quant_method": ["fp8"]}, "['fp8']: loaded are"),
        ({}, "None: loaded are"),
    ],
)
def test_other_packings_are_named(folder, said, words):
    change(folder / "config.json", quantization_config=said)
    place = f"{folder / 'config.json'}: quantization_config.quant_method is "
    assert refusal(folder).startswith(place + words)


def test_what_mlx_says_in_its_own_field_is_named(folder):
    change(folder / "config.json", quantization={"group_size": 64, "bits": 4})
    assert "config.json: quantization is {'group_size': 64" in refusal(folder)


def test_what_modelopt_says_in_its_own_file_is_named(folder):
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(said))
    words = refusal(folder)
    assert "hf_quant_config.json: quantization.quant_algo is 'NVFP4' (NVIDIA ModelOpt)" in words
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": None}}))
    Checkpoint.at(folder).check()
