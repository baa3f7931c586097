"""VisionConfig: the tower of a model that sees, and the pictures it takes.

Read from config.json's vision_config and from preprocessor_config.json, without torch: the HTTP
half brings pictures to the right size, the engine computes the tower. Refuses to know both.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from workers.checkpoint.files import read_json
from workers.checkpoint.safetensors_header import StoredTensor
from workers.errors import ModelError

_PREPROCESSOR, _PROCESSOR = "preprocessor_config.json", "processor_config.json"
_PUBLISHED = "take the file of the published model, or leave images out with --language-model-only"
# A side is a patch's pixels times the patches that are merged into a token.
_MOST_SIDE = 256
_OF_TOWER = re.compile(r"^(?:model\.)?visual\.(.+)$")


@dataclass(frozen=True)
class Tower:
    """What an architecture says of its tower.

    `model_type` is its name in transformers. `sections` are how many of a head's frequencies turn
    with time, rows and columns where config.json does not say it; they take turns, or come one
    after the other.
    """

    model_type: str
    sections: tuple[int, int, int]
    takes_turns: bool = True


@dataclass(frozen=True)
class VisionConfig:
    """`fields` are vision_config as transformers takes it.

    A picture's sides are multiples of `side` pixels, and a square of that side is one token, for
    which `image_token_id` stands in a prompt. It has between `min_pixels` and `max_pixels`.
    """

    tower: Tower
    fields: Mapping[str, Any]
    sections: tuple[int, int, int]
    image_token_id: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def side(self) -> int:
        return self.patch_size * self.merge_size

    @classmethod
    def read(cls, raw: Mapping[str, Any], folder: Path, tower: Tower) -> "VisionConfig | None":
        """Return what a folder says of its tower; None if it has no file about pictures."""
        file, fields = folder / "config.json", raw.get("vision_config")
        found = _preprocessor(folder)
        if fields is None or found is None:
            return None
        if not isinstance(fields, dict):
            raise ModelError(f"{file}: vision_config is {fields!r}, not an object; {_PUBLISHED}")
        said, place = found
        sizes = _Numbers(said, place)
        patch, merge = sizes.count("patch_size", 14), sizes.count("merge_size", 2)
        frames = sizes.count("temporal_patch_size", 2)
        usual = 16 if tower.takes_turns else 14
        own = _Numbers(fields, file)
        its = (
            own.count("patch_size", usual),
            own.count("spatial_merge_size", 2),
            own.count("temporal_patch_size", 2),
        )
        if (patch, merge, frames) != its or patch * merge > _MOST_SIDE:
            raise ModelError(
                f"{place}: patches of {patch} pixels, merged by {merge}, of {frames} frames, but"
                f" {file} says {its}; {_PUBLISHED}"
            )
        least, most = _pixels(said, sizes, patch * merge)
        return cls(
            tower,
            {name: value for name, value in fields.items() if name != "model_type"},
            _sections(raw, file, tower),
            _Numbers(raw, file).count("image_token_id", None),
            patch,
            merge,
            frames,
            least,
            most,
            sizes.colours("image_mean", 0.5),
            sizes.colours("image_std", 0.5),
        )


def tower_of(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a tower among those of files, by the names they have in it."""
    matches = ((name, _OF_TOWER.match(name)) for name in stored)
    return {found[1]: stored[name] for name, found in matches if found}


def _preprocessor(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """Return what is said about pictures, and where."""
    own = folder / _PREPROCESSOR
    if own.exists():
        return read_json(own), own
    joint = folder / _PROCESSOR
    said = read_json(joint, optional=True).get("image_processor")
    return (said, joint) if isinstance(said, dict) else None


def _pixels(said: Mapping[str, Any], sizes: "_Numbers", side: int) -> tuple[int, int]:
    """Return the fewest and the most pixels of a picture."""
    size = said.get("size")
    edges = _Numbers(size if isinstance(size, dict) else {}, sizes.file)
    least = sizes.count("min_pixels", edges.count("shortest_edge", 4 * side * side))
    most = sizes.count("max_pixels", edges.count("longest_edge", 1280 * side * side))
    if least > most or most < side * side:
        raise ModelError(
            f"{sizes.file}: pictures have at least {least} pixels and at most {most}; {_PUBLISHED}"
        )
    return least, most


def _sections(raw: Mapping[str, Any], file: Path, tower: Tower) -> tuple[int, int, int]:
    inner = raw.get("text_config")
    for source in (inner if isinstance(inner, dict) else {}, raw):
        for name in ("rope_scaling", "rope_parameters"):
            rope = source.get(name)
            said = rope.get("mrope_section") if isinstance(rope, dict) else None
            if said is None:
                continue
            if isinstance(said, list) and [type(s) for s in said] == [int] * 3 and min(said) >= 0:
                return said[0], said[1], said[2]
            raise ModelError(f"{file}: mrope_section is {said!r}, not three counts; {_PUBLISHED}")
    return tower.sections


@dataclass(frozen=True)
class _Numbers:
    """An object of a file, whose numbers are checked as they are read."""

    fields: Mapping[str, Any]
    file: Path

    def count(self, name: str, default: int | None) -> int:
        value = self.fields.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or value < 1:
            raise ModelError(f"{self.file}: {name} is {value!r}, not a count; {_PUBLISHED}")
        return value

    def colours(self, name: str, default: float) -> tuple[float, ...]:
        value = self.fields.get(name)
        if value is None:
            return (default,) * 3
        if (
            not isinstance(value, list)
            or len(value) != 3
            or not all(type(v) in (int, float) and 0 < v < inf for v in value)
        ):
            raise ModelError(f"{self.file}: {name} is {value!r}, not three numbers; {_PUBLISHED}")
        return tuple(map(float, value))
