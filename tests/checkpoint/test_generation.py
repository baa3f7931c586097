"""Which tokens end an answer, and what is sampled by default, as the folder's files say it."""

import json
import shutil

import pytest

from qwenapi.doctor.check import Outcome
from qwenapi.doctor.model import check_tokenizer
from qwenapi.settings.sources import load
from tests.checkpoint.folders import change, write_folder
from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ModelError

IM_END, END_OF_TEXT = 2993, 2991


@pytest.fixture
def folder(tmp_path):
    """Return a model whose config.json and generation_config.json name another token than its
    tokenizer, as those of fine-tuned base models do.
    """
    folder = write_folder(tmp_path, eos_token_id=END_OF_TEXT)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END_OF_TEXT}))
    return folder


def added_token(content: str) -> dict[str, object]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"__type": "AddedToken", "content": content, **flags, "special": True}


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("<|im_end|>", (END_OF_TEXT, IM_END)),
        (added_token("<|im_end|>"), (END_OF_TEXT, IM_END)),
        ({"content": "<|im_end|>"}, (END_OF_TEXT, IM_END)),
        ("<|endoftext|>", (END_OF_TEXT,)),
        ("!", (END_OF_TEXT, 0)),  # a plain word of the vocabulary
        (None, (END_OF_TEXT,)),
        ("<|none|>", (END_OF_TEXT,)),
        ("", (END_OF_TEXT,)),
    ],
)
def test_the_tokenizers_own_eos_ends_an_answer(folder, token, expected):
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    change(folder / "tokenizer_config.json", eos_token=token)
    expected = tuple(vocab["!"] if id_ == 0 else id_ for id_ in expected)
    assert Checkpoint.at(folder).eos_token_ids == expected


def test_an_eos_of_the_older_file_counts_if_the_newer_names_none(folder):
    old = {"eos_token": added_token("<|im_end|>")}
    (folder / "special_tokens_map.json").write_text(json.dumps(old))
    change(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    assert Checkpoint.at(folder).eos_token_ids == (END_OF_TEXT,)
    change(folder / "tokenizer_config.json", eos_token=None)
    assert Checkpoint.at(folder).eos_token_ids == (END_OF_TEXT, IM_END)
    (folder / "tokenizer_config.json").unlink()
    assert Checkpoint.at(folder).eos_token_ids == (END_OF_TEXT, IM_END)


def test_every_file_may_name_others(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    change(folder / "config.json", eos_token_id=[8, 9], text_config={"eos_token_id": 10})
    assert Checkpoint.at(folder).eos_token_ids == (7, 8, 9, 10, IM_END)


@pytest.mark.parametrize("eos", [None, -1, []])
def test_a_model_without_any_eos_is_served_with_a_warning(folder, eos):
    for name in ("config.json", "generation_config.json"):
        change(folder / name, eos_token_id=eos)
    change(folder / "tokenizer_config.json", eos_token=None)
    checkpoint = Checkpoint.at(folder)
    assert checkpoint.eos_token_ids == ()
    found = {check.name: check for check in check_tokenizer(checkpoint)}["end of answers"]
    assert found.outcome is Outcome.WARNING and "until max_tokens" in found.why
    assert "eos_token_id" in found.remedy


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("eos", [3000, "2993", True, [2993, 2.0], {"id": 3}])
def test_an_eos_that_is_no_token_is_named_with_its_file(folder, name, eos):
    change(folder / name, eos_token_id=eos)
    with pytest.raises(ModelError, match=rf"{name}: eos_token_id .* is no token"):
        Checkpoint.at(folder).check()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.7, "top_k": 20}, {"temperature": 0.7, "top_k": 20.0}),
        ({"do_sample": True, "repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"do_sample": False}, {"temperature": 0.0}),
        (
            {"do_sample": False, "repetition_penalty": 1.5},
            {"temperature": 0.0, "repetition_penalty": 1.5},
        ),
        (
            {"do_sample": False, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.1}
            | {"repetition_penalty": 1.05},
            {"temperature": 0.0, "repetition_penalty": 1.05},
        ),
        ({"top_k": -1, "top_p": 1}, {"top_k": 0.0, "top_p": 1.0}),
        ({"temperature": None, "max_new_tokens": 5}, {"max_new_tokens": 5}),
    ],
)
def test_without_sampling_the_penalty_stays(folder, said, expected):
    (folder / "generation_config.json").write_text(json.dumps(said))
    assert Checkpoint.at(folder).sampling_defaults == expected


@pytest.mark.parametrize(
    "said",
    [
        {"temperature": -1},
        {"temperature": "0.7"},
        {"top_p": 1.5},
        {"top_k": True},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("nan")},
        {"temperature": float("inf")},
        {"max_new_tokens": 0},
        {"max_new_tokens": 20.5},
        {"top_k": 1.5},
    ],
)
def test_a_default_that_is_no_number_in_its_bounds_is_named(folder, said):
    (folder / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=rf"generation_config\.json: {next(iter(said))} is "):
        Checkpoint.at(folder).check()


def test_a_length_is_a_default_too(folder):
    (folder / "generation_config.json").write_text('{"max_new_tokens": 512, "do_sample": false}')
    assert Checkpoint.at(folder).sampling_defaults == {"max_new_tokens": 512, "temperature": 0.0}


def test_another_folders_file_counts_in_its_place(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    said = {"temperature": 0.2, "eos_token_id": [5, 6]}
    (other / "generation_config.json").write_text(json.dumps(said))
    change(folder / "generation_config.json", temperature=0.9)
    settings = load({"model": str(folder), "generation_config": str(other)}, {})
    checkpoint = Checkpoint.of(settings.engine_config())
    assert checkpoint.sampling_defaults == {"temperature": 0.2}
    assert checkpoint.eos_token_ids == (5, 6, END_OF_TEXT, IM_END)
    (other / "generation_config.json").unlink()
    with pytest.raises(ModelError, match=f"{other}/generation_config.json: No such file"):
        Checkpoint.of(settings.engine_config()).check()


@pytest.mark.parametrize("said", ["auto", "vllm"])
def test_tokens_that_end_an_answer_are_the_models_whoever_samples(folder, said):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    settings = load({"model": str(folder), "generation_config": said}, {})
    assert Checkpoint.of(settings.engine_config()).eos_token_ids[:2] == (7, 8)


def test_a_folder_needs_neither_of_the_optional_files(folder):
    for name in ("generation_config.json", "tokenizer_config.json"):
        shutil.move(folder / name, folder / f"{name}.bak")
    checkpoint = Checkpoint.at(folder)
    checkpoint.check()
    assert checkpoint.eos_token_ids == (END_OF_TEXT,) and checkpoint.sampling_defaults == {}
