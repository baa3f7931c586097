"""Towers load as they are published, or it is said why not; none where nothing is to be seen."""

import json
from dataclasses import replace

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenapi.doctor.memory import Room, make_plan
from qwenapi.settings.table import Settings
from tests.engine.conftest import Driver
from tests.engine.seeing_models import PAD, SIDE, Picture, Prompt, write_seeing
from workers.checkpoint.checkpoint import Checkpoint
from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.errors import ModelError
from workers.wire.images import are_images_right
from workers.wire.protocol import Generate, SamplingParams

PROMPT = Prompt([5, 6], Picture(1, 2, 3), [7])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("seeing")
    write_seeing(path, "qwen3_vl")
    return path


@pytest.fixture
def path(written, tmp_path):
    """Return a copy of the folder, to be changed."""
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def start(path, **changes):
    places = {"device": "cpu", "dtype": "float32", "num_blocks": 60, "threads": 1}
    return Driver(Engine(EngineConfig(str(path), **places, **changes), lambda *_: None))


def change(path, name, **fields):
    said = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(said | fields))


def change_weights(path, changes):
    file = path / "model.safetensors"
    state = load_file(file) | changes
    save_file({name: part for name, part in state.items() if part is not None}, file)


def tower_name(path):
    return next(name for name in load_file(path / "model.safetensors") if "blocks.0.norm1" in name)


def test_the_card_says_what_a_model_sees(written):
    card = start(written).engine.card
    assert (card.image_side, card.image_token_id) == (SIDE, PAD)


def test_what_the_largest_picture_needs_can_be_tried(written):
    start(written).engine._runner.images._tower.see_largest()


def test_text_alone_is_served_where_that_is_asked_or_nothing_is_known(path, caplog):
    caplog.set_level("INFO")
    asked = ({"language_model_only": True}, "--language-model-only")
    for how, reason in (asked, ({}, "there is no preprocessor_config.json")):
        driver = start(path, **how)
        assert driver.engine.card.image_side == 0
        assert any(reason in message for message in caplog.messages), caplog.messages
        caplog.clear()
        driver.add(1, [5, 6, 7], max_tokens=3)
        driver.add(2, PROMPT.ids, max_tokens=3, images=PROMPT.images)
        driver.run()
        assert len(driver.tokens(1)) == 3
        assert driver.failed[2].reason == "engine_error"
        (path / "preprocessor_config.json").unlink(missing_ok=True)


def test_doctor_counts_a_tower_that_is_to_be_loaded(written):
    checkpoint, room = Checkpoint.at(written), Room("CPU", False, 1 << 30, 1 << 30)
    sizes = [
        make_plan(
            replace(Settings(), dtype="float32", language_model_only=is_blind),
            checkpoint.weights,
            checkpoint.config,
            room,
        ).weights
        for is_blind in (False, True)
    ]
    tower = start(written).engine._runner.images._tower._module
    assert sizes[0] - sizes[1] == 4 * sum(part.numel() for part in tower.parameters())


def test_text_alone_is_served_by_several_ranks(written):
    checkpoint = Checkpoint.at(written)
    assert checkpoint.vision and not checkpoint.why_blind
    assert not replace(checkpoint, num_ranks=2).vision
    assert "ranks" in replace(checkpoint, num_ranks=2).why_blind


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (None, "missing keys"),
        (torch.zeros(3), "mismatched keys"),
        (torch.zeros(32, dtype=torch.int32), "plain weights only"),
    ],
)
def test_a_tower_that_cannot_be_computed_is_refused(path, changed, words):
    change_weights(path, {tower_name(path): changed})
    with pytest.raises(ModelError, match=words) as raised:
        start(path)
    assert "--language-model-only" in str(raised.value)
    assert start(path, language_model_only=True).engine.card.image_side == 0


def test_a_tensor_that_no_tower_has_is_refused(path):
    change_weights(path, {"model.visual.blocks.0.other.weight": torch.zeros(3)})
    with pytest.raises(ModelError, match="unexpected keys"):
        start(path)


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("preprocessor_config.json", {"patch_size": 14}, "patches of 14 pixels"),
        ("preprocessor_config.json", {"image_mean": [1, "a", 2]}, "image_mean"),
        ("preprocessor_config.json", {"max_pixels": 3}, "at most 3"),
        ("config.json", {"vision_config": 5}, "vision_config is 5"),
        ("config.json", {"image_token_id": "x"}, "image_token_id"),
        ("config.json", {"vision_config": {"patch_size": 4, "depth": "x"}}, "vision_config"),
    ],
)
def test_files_that_contradict_each_other_are_refused(path, file, fields, words):
    change(path, file, **fields)
    with pytest.raises(ModelError, match=words):
        start(path)


def test_what_is_no_picture_of_the_prompt_is_not_computed(written):
    card = start(written).engine.card
    (image,) = PROMPT.images
    request = Generate(
        wid=1,
        request_id="",
        prompt_ids=tuple(PROMPT.ids),
        params=SamplingParams(max_tokens=1),
        images=PROMPT.images,
    )
    assert are_images_right(request, card)
    for wrong in (
        {"position": 1},
        {"position": -1},
        {"rows": 0},
        {"rows": 3, "columns": 3},
        {"pixels": image.pixels[:-1]},
        {"digest": b""},
        {"position": 50},
    ):
        changed = msgspec.structs.replace(image, **wrong)
        assert not are_images_right(msgspec.structs.replace(request, images=(changed,)), card)
    for images in ((image, image), ()):
        found = are_images_right(msgspec.structs.replace(request, images=images), card)
        assert found == (not images)
    more = msgspec.structs.replace(request, prompt_ids=(*request.prompt_ids, PAD))
    assert not are_images_right(more, card)
