"""Pictures reach the model as its own processor in transformers would bring them there."""

import json

import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwenapi.images.picture import LOW_SIDE, pixel_bounds, read_picture
from qwenapi.images.source import ImageSource
from tests.images.pictures import file_of, noise
from workers.checkpoint.vision import Tower, VisionConfig
from workers.errors import ModelError
from workers.model.vision_tower import VisionTower

QWEN3 = {
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
QWEN2 = {
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SMALL = QWEN3 | {"size": {"shortest_edge": 1024, "longest_edge": 40_000}}
SIZES = [(101, 57), (640, 480), (33, 500), (1, 1), (5, 7), (900, 600)]


def vision_of(path, said, takes_turns):
    (path / "preprocessor_config.json").write_text(json.dumps(said))
    tower = Tower("qwen3_vl_vision", (24, 20, 20), takes_turns=takes_turns)
    fields = {"patch_size": said["patch_size"]}
    raw = {"vision_config": fields, "image_token_id": 7}
    return VisionConfig.read(raw, path, tower)


@pytest.mark.parametrize("said", [QWEN3, QWEN2, SMALL], ids=["qwen3", "qwen2", "small"])
@pytest.mark.parametrize("size", SIZES)
def test_patches_are_those_of_the_processor(tmp_path, said, size):
    vision = vision_of(tmp_path, said, said is not QWEN2)
    image = noise(*size)
    picture = read_picture(file_of(image), ImageSource(""), vision, 0)
    expected = Qwen2VLImageProcessorPil(**said)([image], return_tensors="pt")
    grid = expected["image_grid_thw"][0].tolist()
    assert [1, picture.rows * 2, picture.columns * 2] == grid
    tower = VisionTower(torch.nn.Linear(1, 1), vision)
    torch.testing.assert_close(tower._patches(picture), expected["pixel_values"])


def test_digests_name_the_shape_and_what_is_shown(tmp_path):
    vision = vision_of(tmp_path, SMALL, True)
    digests = {
        read_picture(file_of(noise(*size, seed=seed)), ImageSource(""), vision, 0).digest
        for size, seed in (((64, 32), 0), ((32, 64), 0), ((64, 32), 1), ((64, 32), 0))
    }
    assert len(digests) == 3


def test_callers_narrow_what_the_model_takes(tmp_path):
    vision = vision_of(tmp_path, QWEN3, True)
    assert pixel_bounds(ImageSource("", max_pixels=100_000), vision, 0) == (65536, 100_000)
    assert pixel_bounds(ImageSource("", min_pixels=90_000), vision, 0) == (90_000, 16777216)
    assert pixel_bounds(ImageSource("", detail="low"), vision, 0) == (65536, LOW_SIDE**2)
    assert pixel_bounds(ImageSource("", max_pixels=10**9), vision, 200_000) == (65536, 200_000)
    assert pixel_bounds(ImageSource("", max_pixels=1), vision, 0) == (1024, 1024)
    picture = read_picture(file_of(noise(900, 900)), ImageSource("", detail="low"), vision, 0)
    assert picture.num_tokens == (LOW_SIDE // 32) ** 2
    assert len(picture.pixels) == LOW_SIDE**2 * 3


def test_a_processor_that_is_not_the_towers_is_refused(tmp_path):
    with pytest.raises(ModelError, match="patches of 14 pixels"):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(QWEN2))
        raw = {"vision_config": {"patch_size": 16}, "image_token_id": 7}
        VisionConfig.read(raw, tmp_path, Tower("qwen3_vl_vision", (1, 1, 1)))
    assert VisionConfig.read({}, tmp_path, Tower("qwen3_vl_vision", (1, 1, 1))) is None
