"""Decode a picture's bytes to RGB, within limits that hold whatever the bytes claim.

A picture's size is known before a pixel of it is decoded. Only four decoders are ever tried; what
they are given has passed that, so memory is bounded by MAX_SOURCE_PIXELS. Of an animation the first
frame counts. A camera's turn is undone; what is transparent lies on white.
"""

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from qwenapi.errors import BadRequest
from qwenapi.images.source import MAX_BYTES

MAX_SOURCE_PIXELS = 40_000_000
# Pillow's decoder of WebP keeps the interpreter to itself: a quarter of a second for so many.
MAX_WEBP_PIXELS = 4_000_000
# As the models' own processors: beyond it one side would be next to nothing.
MAX_RATIO = 200
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

# Each scan of a progressive JPEG is a pass over the whole picture; encoders make about ten.
MAX_SCANS = 100

_UNREADABLE = "The picture cannot be decoded: send a whole PNG, JPEG, WebP or GIF."


def decode(data: bytes) -> Image.Image:
    """Return the picture in RGB; raise BadRequest saying why it cannot be had."""
    if len(data) > MAX_BYTES:
        raise BadRequest(f"The picture has {len(data)} bytes; at most {MAX_BYTES} are read.")
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MAX_SCANS:
        raise BadRequest(f"The picture is a JPEG of more than {MAX_SCANS} scans.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bomb is refused below, by our own limit
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(
                *image.size, MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_SOURCE_PIXELS
            )
            image.load()
            turned = ImageOps.exif_transpose(image)
            return _to_rgb(image if turned is None else turned)
        except BadRequest:
            raise
        except UnidentifiedImageError as error:
            raise BadRequest(_what_it_may_be(data)) from error
        except Image.DecompressionBombError as error:
            raise BadRequest(f"The picture has more than {MAX_SOURCE_PIXELS} pixels.") from error
        # A decoder meets bytes of anybody's making: each has exceptions of its own.
        except Exception as error:
            raise BadRequest(_UNREADABLE) from error


def _check_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        what = "at most" if most == MAX_SOURCE_PIXELS else "of a WebP at most"
        raise BadRequest(f"The picture has {width}×{height} pixels; {what} {most} are decoded.")
    if min(width, height) < 1 or max(width, height) > MAX_RATIO * min(width, height):
        raise BadRequest(
            f"The picture has {width}×{height} pixels: one side is more than {MAX_RATIO} times the"
            " other."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.has_transparency_data and not image.mode.startswith("I"):
        whole = image.convert("RGBA")
        white = Image.new("RGB", whole.size, "white")
        white.paste(whole, mask=whole)
        return white
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")


def _what_it_may_be(data: bytes) -> str:
    head = data[:256].lstrip().lower()
    if head.startswith((b"<svg", b"<?xml")):
        return "The picture is SVG, which is not drawn here: send PNG, JPEG, WebP or GIF."
    if head.startswith((b"<!doctype", b"<html")):
        return "The picture is a web page: send PNG, JPEG, WebP or GIF."
    return _UNREADABLE
