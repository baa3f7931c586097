"""ImageSource: a picture as a caller sends it, and the bytes of a data URL.

Pure: what can be refused by its look alone is refused here, in words that every dialect shares.
"""

import binascii
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qwenapi.errors import BadRequest

Detail = Literal["auto", "low", "high"]
# Its content is a string, or a list of texts and pictures.
Message = Mapping[str, Any]

# What a data URL says it is; what it is, the bytes themselves say.
_DATA = re.compile(r"data:(?P<type>[\w.+/-]*)(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
_MEDIA_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif")
_UNSAID = ("", "application/octet-stream", "binary/octet-stream")
_PIECE = 4 * 65536
# Of a picture as it is sent.
MAX_BYTES = 20 * 1024 * 1024


@dataclass(frozen=True)
class ImageSource:
    """A picture's `url`, which is a data URL or one of http(s), and how large it is to be seen.

    `min_pixels` and `max_pixels` narrow what the model takes; `place` is where it stands in the
    body, for what is said of it.
    """

    url: str = field(repr=False)
    place: str = ""
    detail: Detail = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def is_data(self) -> bool:
        return self.url[:5].lower() == "data:"


def data_of(source: ImageSource) -> bytes:
    """Return the bytes of a data URL."""
    found = _DATA.match(source.url[:256])
    if found is None:
        raise BadRequest("The picture's data URL must begin with 'data:image/TYPE;base64,'.")
    check_media_type(found["type"])
    return decode_base64(source.url[found.end() :])


def check_media_type(name: str) -> None:
    """Refuse a kind of picture that is known by its name not to be read."""
    if name.lower() not in (*_MEDIA_TYPES, *_UNSAID):
        raise BadRequest(
            f"A picture of type '{name[:64]}' cannot be read: send PNG, JPEG, WebP or GIF."
        )


def decode_base64(text: str) -> bytes:
    """Return the bytes of a text, in pieces, so that other threads have their turn."""
    try:
        raw = text.encode("ascii").translate(None, string.whitespace.encode())
        if len(raw) > MAX_BYTES * 4 // 3 + 4:
            raise BadRequest(f"The picture has more than {MAX_BYTES} bytes, which are not read.")
        if b"=" in raw[:-2]:
            raise ValueError("something follows its end")
        pieces = (raw[start : start + _PIECE] for start in range(0, len(raw), _PIECE))
        return b"".join([binascii.a2b_base64(piece, strict_mode=True) for piece in pieces])
    except ValueError as error:  # so are binascii's own, and those of other characters
        raise BadRequest("The picture's data is not valid base64.") from error


def sources_of(messages: Iterable[Message]) -> list[ImageSource]:
    """Return the pictures of a conversation, in its order."""
    contents = (message.get("content") for message in messages)
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return [part["image"] for part in parts if part["type"] == "image"]


def without_sources(messages: Iterable[Message]) -> list[Message]:
    """Return the conversation as a template is to see it: that there are pictures, and no more."""
    return [
        {**message, "content": [_shown(part) for part in content]}
        if isinstance(content := message.get("content"), list)
        else message
        for message in messages
    ]


def _shown(part: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "image"} if part["type"] == "image" else part
