"""What --rope-scaling and --hf-overrides lay over config.json, and what they may not say."""

import json
from dataclasses import replace

import pytest

from qwenapi.doctor.check import Outcome
from qwenapi.doctor.report import check_model
from qwenapi.settings.table import Settings
from tests.checkpoint.folders import change, write_folder
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.overrides import Overrides
from workers.config import EngineConfig
from workers.errors import ConfigError

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
OLD = {"type" if key == "rope_type" else key: value for key, value in YARN.items()}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model", rope_theta=None, rope_parameters={"rope_theta": 5e5})


def read(folder, rope_scaling=None, **hf_overrides) -> Checkpoint:
    texts = {"rope_scaling": rope_scaling, "hf_overrides": hf_overrides}
    config = {name: json.dumps(said) for name, said in texts.items() if said}
    return Checkpoint.of(EngineConfig(str(folder), **config))


@pytest.mark.parametrize(
    "said",
    [
        {"rope_scaling": YARN},
        {"rope_scaling": OLD},
        {"rope_parameters": YARN},
        {"rope_parameters": YARN | {"rope_theta": 5e5}},
    ],
)
def test_positions_are_stretched_and_the_models_theta_stays(folder, said):
    config = read(folder, **said).config
    assert config.context_length == 2048
    assert dict(config.rope.values) == YARN | {"rope_theta": 5e5}


def test_rope_that_the_file_scales_itself_is_replaced(folder):
    change(folder / "config.json", rope_scaling={"type": "linear", "factor": 8.0}, rope_theta=7e4)
    config = read(folder, rope_parameters=YARN | {"factor": 2.0}).config
    assert config.context_length == 1024
    assert config.rope.values["rope_type"] == "yarn"
    assert read(folder, rope_parameters={"rope_type": "default"}).config.context_length == 512


def test_other_fields_replace_the_files(folder):
    assert read(folder, max_position_embeddings=4096).config.context_length == 4096
    assert read(folder, eos_token_id=[5, 6]).eos_token_ids[:3] == (2993, 5, 6)


def test_a_text_model_inside_is_meant(folder):
    fields = json.loads((folder / "config.json").read_text())
    outer = {"architectures": fields["architectures"], "model_type": fields["model_type"]}
    (folder / "config.json").write_text(json.dumps(outer | {"text_config": fields}))
    for said in ({"rope_parameters": YARN}, {"text_config": {"rope_parameters": YARN}}):
        config = read(folder, **said).config
        assert config.context_length == 2048 and config.rope.values["rope_theta"] == 5e5


def test_another_model_has_another_hash(folder):
    hashes = {read(folder).model_hash, Checkpoint.at(folder).model_hash}
    assert len(hashes) == 1
    hashes |= {read(folder, YARN).model_hash, read(folder, YARN | {"factor": 2.0}).model_hash}
    assert len(hashes) == 3


def test_nothing_said_leaves_the_file_as_it_is():
    raw = {"rope_scaling": None, "text_config": {"rope_theta": 1}}
    assert Overrides().apply(raw) is raw


@pytest.mark.parametrize(
    ("rope_scaling", "hf_overrides", "words"),
    [
        ("{", "", "rope_scaling = '{': not JSON"),
        ("4", "", "rope_scaling = '4': must be a JSON object"),
        ("", "[1]", r"hf_overrides = '\[1\]': must be a JSON object"),
        ("", '{"rope_parameters": 4}', "rope_parameters must be a JSON object"),
        ('{"factor": 2}', '{"rope_parameters": {}}', "both speak of rope"),
        ("", '{"hiden_size": 4}', "nothing is computed from a field 'hiden_size'"),
        ("", '{"text_config": {"depth": 4}}', "nothing is computed from a field 'depth'"),
        ('{"rope_type": "dynamic", "factor": 2.0}', "", "rope_type 'dynamic' is not supported"),
        ('{"rope_type": "yarn", "factor": "4"}', "", "--rope-scaling change it: .*factor is '4'"),
    ],
)
def test_what_is_said_wrongly_is_refused_in_a_sentence(folder, rope_scaling, hf_overrides, words):
    with pytest.raises(ConfigError, match=words):
        _ = Checkpoint.of(
            EngineConfig(str(folder), rope_scaling=rope_scaling, hf_overrides=hf_overrides)
        ).config


def test_the_doctor_names_the_flag_by_which_a_length_fits(folder):
    asked = replace(Settings(), model=str(folder), max_model_len=1500, num_blocks=200)
    refused = {check.name: check for check in check_model(asked)}["context"]
    assert refused.outcome is Outcome.FAILURE
    assert refused.why == "the model ends at 512"
    flag = refused.remedy.partition("--rope-scaling ")[2].strip("'")
    assert json.loads(flag) == YARN | {"factor": 3.0}
    stretched = {check.name: check for check in check_model(replace(asked, rope_scaling=flag))}
    assert stretched["context"].outcome is Outcome.OK
