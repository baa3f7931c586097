"""VisionTower: transformers' own module that turns the pixels of pictures into what tokens are.

Its weights lie beside the text model's and are read here, as they are: a tower is never packed.
Refuses to know prompts and caches.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import MODEL_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.packings import FLOATS
from workers.checkpoint.vision import VisionConfig
from workers.errors import ModelError

_COLOURS = 3
_HIGHEST = 255
_REMEDY = (
    "take config.json and weights from the same model, or leave images out with"
    " --language-model-only"
)


class Pixels(Protocol):
    """A picture of so many tokens each way: red, green and blue of its pixels, line by line."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def pixels(self) -> bytes: ...


class _Blank(NamedTuple):
    rows: int
    columns: int
    pixels: bytes


class VisionTower:
    """The tower of one engine."""

    def __init__(self, module: Any, vision: VisionConfig, *, one_by_one: bool = False) -> None:
        """With `one_by_one`, what is seen of a picture depends on no other one."""
        self._module, self._vision, self._one_by_one = module, vision, one_by_one
        weight = next(module.parameters())
        self.device, self._dtype = weight.device, weight.dtype
        shape = (_COLOURS, 1, 1)
        self._mean = torch.tensor(vision.mean, device=self.device).view(shape)
        self._std = torch.tensor(vision.std, device=self.device).view(shape)

    @torch.inference_mode()
    def see(self, images: Sequence[Pixels]) -> list[Tensor]:
        """Return `[1 + levels, tokens, width]` of each picture."""
        if self._one_by_one and len(images) > 1:
            return [features for image in images for features in self.see([image])]
        merge = self._vision.merge_size
        patches = torch.cat([self._patches(image) for image in images]).to(self._dtype)
        grids = [[1, image.rows * merge, image.columns * merge] for image in images]
        output = self._module(patches, grid_thw=torch.tensor(grids, device=self.device))
        levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        counts = [image.rows * image.columns for image in images]
        return list(torch.stack(levels).split(counts, dim=1))

    def see_largest(self) -> None:
        """Make the allocator take what the largest picture needs, so that a cache is sized beside
        it.
        """
        side = self._vision.side
        edge = max(1, math.isqrt(self._vision.max_pixels) // side)
        pixels = bytes(edge * edge * side * side * _COLOURS)
        self.see([_Blank(edge, edge, pixels)])

    def _patches(self, image: Pixels) -> Tensor:
        """Return `[patches, numbers]`, those of one token behind each other, as a processor of
        transformers does.
        """
        vision = self._vision
        patch, merge, side = vision.patch_size, vision.merge_size, vision.side
        size = image.rows * side, image.columns * side, _COLOURS
        pixels = torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).view(size)
        numbers = pixels.to(self.device).permute(2, 0, 1) * (1 / _HIGHEST)
        numbers = (numbers - self._mean) / self._std
        cut = numbers.view(_COLOURS, image.rows, merge, patch, image.columns, merge, patch)
        ordered = cut.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
        repeated = ordered.expand(*ordered.shape[:5], vision.temporal_patch_size, patch, patch)
        return repeated.reshape(image.rows * image.columns * merge * merge, -1)


def load_tower(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, one_by_one: bool
) -> VisionTower | None:
    """Return the tower of a checkpoint that has one; raise ModelError if it cannot be computed."""
    vision = checkpoint.vision
    if vision is None:
        return None
    _refuse_packed(checkpoint)
    try:
        config = AutoConfig.for_model(vision.tower.model_type, **vision.fields)
        module, info = _load(checkpoint, config, dtype, device)
    # Checks of configurations raise errors of a library's own, and modules what they stumble on.
    except Exception as error:
        raise ModelError(f"{checkpoint.config_file}: vision_config: {error}; {_REMEDY}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            names = ", ".join(str(name) for name in sorted(info[what], key=str)[:3])
            raise ModelError(
                f"{checkpoint.directory}: the tower's {what.replace('_', ' ')}: {names}; {_REMEDY}"
            )
    width = checkpoint.config.hidden_size
    if config.out_hidden_size != width:
        raise ModelError(
            f"{checkpoint.config_file}: the tower gives {config.out_hidden_size} numbers a token,"
            f" and the model takes {width}; {_REMEDY}"
        )
    module.eval().requires_grad_(False)
    return VisionTower(module, vision, one_by_one=one_by_one)


def _load(
    checkpoint: Checkpoint, config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, dict[str, Any]]:
    model_class: Any = MODEL_MAPPING[type(config)]
    with ExitStack() as files:
        opened: dict[Path, Any] = {}
        state = {}
        for name, tensor in checkpoint.weights.tower.items():
            if tensor.file not in opened:
                opened[tensor.file] = files.enter_context(safe_open(tensor.file, framework="pt"))
            state[name] = opened[tensor.file].get_slice(tensor.name)
        loaded: tuple[PreTrainedModel, dict[str, Any]] = model_class.from_pretrained(
            pretrained_model_name_or_path=None,
            state_dict=state,
            device_map=None if device.type == "cpu" else device,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told
        )
    return loaded


def _refuse_packed(checkpoint: Checkpoint) -> None:
    for tensor in checkpoint.weights.tower.values():
        if tensor.dtype not in FLOATS:
            raise ModelError(
                f"{tensor.file}: {tensor.name} is of type {tensor.dtype}, but towers are computed"
                " from plain weights only; leave images out with --language-model-only"
            )
