"""Whatever bytes come, a picture in RGB comes of them, or a sentence that says why not."""

import io

import numpy as np
import pytest
from PIL import Image

from qwenapi.errors import BadRequest
from qwenapi.images import decode as module
from qwenapi.images import source
from qwenapi.images.decode import decode
from tests.images.pictures import bomb, file_of, noise

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_format_that_is_named_is_read(kind):
    image = noise(31, 17)
    found = decode(file_of(image, kind))
    assert (found.mode, found.size) == ("RGB", (31, 17))
    difference = np.abs(np.asarray(found, float) - np.asarray(image, float)).mean()
    assert difference < (1 if kind == "PNG" else 12)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_print_colours_become_rgb(mode):
    image = noise(20, 20, mode)
    found = decode(file_of(image, "JPEG", quality=95))
    expected = np.asarray(image.convert("RGB"), float)
    assert np.abs(np.asarray(found, float) - expected).mean() < 6


def test_palettes_and_sixteen_bits_are_read():
    image = noise(20, 20).quantize(16)
    assert decode(file_of(image)).getpixel((3, 3)) == image.convert("RGB").getpixel((3, 3))
    deep = Image.fromarray(np.full((8, 8), 0x8080, np.uint16))
    assert decode(file_of(deep)).getpixel((0, 0)) == (128, 128, 128)


def test_what_is_transparent_lies_on_white():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 1), (10, 20, 30, 255))
    found = decode(file_of(image))
    assert found.getpixel((0, 0)) == (255, 255, 255) and found.getpixel((1, 1)) == (10, 20, 30)
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert found.mode == "RGB" and abs(decode(file_of(half)).getpixel((0, 0))[0] - 127) <= 1


def test_a_camera_held_upright_gives_an_upright_picture():
    image = Image.new("RGB", (6, 3), "black")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    found = decode(file_of(image, exif=exif))
    assert found.size == (3, 6) and found.getpixel((2, 0)) == (255, 0, 0)


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((4, 4)) == (255, 0, 0)


HOSTILE = {
    "bomb": (bomb(), "pixels"),
    "bomb beyond Pillow's own limit": (bomb(60_000, 60_000), "pixels"),
    "truncated": (file_of(noise(90, 90))[:-400], "cannot be decoded"),
    "long": (file_of(Image.new("1", (20_000, 1))), "more than 200 times"),
    "svg": (SVG, "SVG"),
    "page": (b"<!DOCTYPE html><html></html>", "web page"),
    "nothing": (b"", "cannot be decoded"),
    "noise": (b"\x89PNG\r\n\x1a\n" + bytes(200), "cannot be decoded"),
    "another format": (file_of(noise(9, 9), "BMP"), "cannot be decoded"),
    "scans": (b"\xff\xd8" + b"\xff\xda" * 101, "scans"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_read_is_said(name):
    data, reason = HOSTILE[name]
    with pytest.raises(BadRequest, match=reason):
        decode(data)


def test_too_many_bytes_are_refused_before_they_are_looked_at(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(BadRequest, match="at most 100"):
        decode(bytes(101))


def test_a_large_webp_is_refused_as_its_decoder_would_hold_everybody_up():
    large = file_of(Image.new("RGB", (2001, 2000)), "WEBP")
    with pytest.raises(BadRequest, match="of a WebP at most 4000000"):
        decode(large)
    assert decode(file_of(Image.new("RGB", (2000, 2000)), "WEBP")).size == (2000, 2000)


def test_a_colour_that_stands_for_transparency_is_white():
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG", transparency=(0, 0, 0))
    assert decode(stream.getvalue()).getpixel((0, 0)) == (255, 255, 255)


def test_a_text_too_long_for_a_picture_is_not_decoded(monkeypatch):
    monkeypatch.setattr(source, "MAX_BYTES", 30)
    assert source.decode_base64("QUJD\nQUJD\r\n " * 5) == b"ABCABC" * 5
    with pytest.raises(BadRequest, match="more than 30 bytes"):
        source.decode_base64("QUJD" * 15)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(BadRequest):
        decode(bomb())


def test_one_pixel_is_a_picture():
    assert decode(file_of(Image.new("RGB", (1, 1), "blue"))).getpixel((0, 0)) == (0, 0, 255)
    assert Image.open(io.BytesIO(file_of(Image.new("RGB", (1, 1))))).size == (1, 1)
