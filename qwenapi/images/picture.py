"""Picture: pixels as the model takes them, and what names them.

Resized as the models' own processors do it (smart_resize of transformers' Qwen2-VL processor):
sides are multiples of a token's, the ratio stays as close as that allows, and the pixels are within
what the model and the caller want. Values stay whole numbers; the engine normalizes them.
"""

import hashlib
import math
from dataclasses import dataclass

from PIL import Image

from qwenapi.images.decode import decode
from qwenapi.images.source import ImageSource
from workers.checkpoint.vision import VisionConfig

# What `detail: low` shrinks a picture to, as OpenAI's own does.
LOW_SIDE = 512


@dataclass(frozen=True)
class Picture:
    """So many tokens each way; `digest` names these pixels in this shape."""

    rows: int
    columns: int
    pixels: bytes
    digest: bytes

    @property
    def num_tokens(self) -> int:
        return self.rows * self.columns


def read_picture(
    data: bytes, source: ImageSource, vision: VisionConfig, most_pixels: int
) -> Picture:
    """Decode and resize a picture; `most_pixels` is this server's own limit, 0: none."""
    image = decode(data)
    least, most = pixel_bounds(source, vision, most_pixels)
    height, width = smart_resize(image.height, image.width, vision.side, least, most)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = height // vision.side, width // vision.side
    pixels = image.tobytes()
    digest = hashlib.sha256(b"%d %d " % (rows, columns) + pixels).digest()
    return Picture(rows, columns, pixels, digest)


def pixel_bounds(source: ImageSource, vision: VisionConfig, most_pixels: int) -> tuple[int, int]:
    """Return the fewest and the most pixels of a picture: the model's, narrowed."""
    most = min(vision.max_pixels, most_pixels or vision.max_pixels)
    if source.detail == "low":
        most = min(most, LOW_SIDE**2)
    most = max(vision.side**2, min(most, source.max_pixels or most))
    return min(max(vision.min_pixels, source.min_pixels or 0), most), most


def smart_resize(height: int, width: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Return the height and width that a picture is brought to."""
    rows, columns = round(height / side), round(width / side)
    if rows * columns * side * side > most:
        scale = math.sqrt(height * width / most)
        rows = max(1, math.floor(height / scale / side))
        columns = max(1, math.floor(width / scale / side))
    elif rows * columns * side * side < least:
        scale = math.sqrt(least / (height * width))
        rows = math.ceil(height * scale / side)
        columns = math.ceil(width * scale / side)
        if rows * columns * side * side > most:  # bounds so close that no shape lies between
            rows, columns = (
                max(1, math.floor(height * scale / side)),
                math.floor(width * scale / side),
            )
            columns = max(1, columns)
    return rows * side, columns * side
