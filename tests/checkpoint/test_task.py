"""What a folder is served for: by its architecture, sentence-transformers' modules, the setting."""

import json

import pytest

from workers.checkpoint.task import task_of
from workers.errors import ConfigError, ModelError

CAUSAL, OTHER = "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"
MODULE = "sentence_transformers.models."
POOLING = {"path": "1_Pooling", "type": f"{MODULE}Pooling"}
SCORE = {"path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.LogitScore"}


def write(folder, *modules, **config):
    (folder / "modules.json").write_text(
        json.dumps([{"path": "", "type": "x.Transformer"}, *modules])
    )
    for module in modules:
        (folder / module["path"]).mkdir(exist_ok=True)
        if config:
            (folder / module["path"] / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("modules", "config", "task"),
    [
        ((), {}, "generate"),
        ((POOLING,), {}, "embed"),
        ((POOLING,), {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "embed"),
        ((POOLING,), {"pooling_mode": "lasttoken"}, "embed"),
        ((SCORE,), {"true_token_id": 9693, "false_token_id": 2152}, "rerank"),
    ],
)
def test_modules_say_what_a_model_is_for_and_a_setting_says_it_better(
    tmp_path, modules, config, task
):
    write(tmp_path, *modules, **config)
    assert task_of(tmp_path, CAUSAL, "auto") == task
    for asked in ("generate", "embed", "rerank"):
        assert task_of(tmp_path, CAUSAL, asked) == asked


def test_a_folder_without_modules_is_what_its_architecture_is_for(tmp_path):
    assert task_of(tmp_path, CAUSAL, "auto") == task_of(tmp_path, OTHER, "auto") == "generate"
    assert task_of(tmp_path, "Qwen3Model", "auto") == "embed"
    assert task_of(tmp_path, "Qwen3ForSequenceClassification", "auto") == "rerank"


@pytest.mark.parametrize("asked", ["embed", "rerank"])
def test_what_an_architecture_is_not_for_is_refused(tmp_path, asked):
    with pytest.raises(ConfigError, match=f"'{asked}', but {OTHER} is served for generate only"):
        task_of(tmp_path, OTHER, asked)


def test_modules_of_an_architecture_that_is_not_for_them_are_told(tmp_path):
    with pytest.raises(ConfigError, match="'embed', as modules.json says, but Qwen3Moe"):
        task_of(write(tmp_path, POOLING), OTHER, "auto")
    assert task_of(tmp_path, OTHER, "generate") == "generate"


@pytest.mark.parametrize(
    ("modules", "config", "said"),
    [
        ((POOLING,), {"pooling_mode_mean_tokens": True}, "1_Pooling/config.json: pools other"),
        ((POOLING,), {"pooling_mode": "mean"}, "1_Pooling/config.json: pools other"),
        ((SCORE,), {"true_token_id": 1, "false_token_id": None}, "false_token_id"),
        ((POOLING, {"path": "2_Dense", "type": f"{MODULE}Dense"}), {}, "module Dense is not"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(tmp_path, modules, config, said):
    folder = write(tmp_path, *modules, **config)
    for architecture in (CAUSAL, "Qwen3Model"):
        for asked in ("auto", "embed"):
            with pytest.raises(ModelError, match=said):
                task_of(folder, architecture, asked)
    assert task_of(tmp_path, CAUSAL, "generate") == "generate"


@pytest.mark.parametrize("text", ["{}", "[1]", "[", ""])
def test_modules_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelError, match=r"modules\.json: not"):
        task_of(tmp_path, CAUSAL, "auto")
