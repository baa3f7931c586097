"""PictureRope: the rotation of tokens whose position is a time, a row and a column (M-RoPE).

Each of a head's frequencies turns with one of the three. They take turns, rows and columns for as
long as their counts last and time for the rest, or come one after the other. Where all three are
equal, as those of text are, the rotation is the model's own.
"""

from typing import Any

import torch
from torch import Tensor

from workers.checkpoint.vision import VisionConfig
from workers.errors import ModelError
from workers.model.layers.qwen_layers import Rope


class PictureRope:
    """The rotation of one model, of which `rotary` is transformers' module."""

    def __init__(self, rotary: Any, vision: VisionConfig) -> None:
        self._rotary = rotary
        axes = _axes(vision, len(rotary.inv_freq))
        self._axes = torch.tensor(axes, device=rotary.inv_freq.device)

    def __call__(self, positions: Tensor) -> Rope:
        """Return the angles of positions `[3, tokens]`."""
        turned = positions.to(self._axes.device).float()[self._axes].T
        angles = turned * self._rotary.inv_freq.float()
        scaling = self._rotary.attention_scaling
        cos, sin = angles.cos() * scaling, angles.sin() * scaling
        both = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return Rope(both[0].unsqueeze(1), both[1].unsqueeze(1))


def _axes(vision: VisionConfig, num_frequencies: int) -> list[int]:
    """Return what each frequency turns with: 0 time, 1 row, 2 column."""
    time, rows, columns = vision.sections
    if not vision.tower.takes_turns:
        if time + rows + columns != num_frequencies:
            raise ModelError(
                f"mrope_section is {list(vision.sections)}, which adds up to other than the"
                f" {num_frequencies} frequencies of a head; take config.json of the published model"
            )
        return [0] * time + [1] * rows + [2] * columns
    axes = [0] * num_frequencies
    for axis, count in ((1, rows), (2, columns)):
        for index in range(axis, min(3 * count, num_frequencies), 3):
            axes[index] = axis
    return axes
