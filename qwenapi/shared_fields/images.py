"""Pictures in the bodies of the dialects, checked: what each calls them is its own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwenapi.http.fields import Path, refuse
from qwenapi.http.schemas import dotted
from qwenapi.images.source import ImageSource

DETAILS = ("auto", "low", "high")
MAX_URL_CHARACTERS = 8192
# What a caller may have a smaller picture enlarged to: a dot is not to take minutes to look at.
MOST_MIN_PIXELS = 1 << 20
# Keys of an OpenAI part, and of an `image_url` that is an object.
PART_KEYS = ("type", "image_url", "image", "detail", "min_pixels", "max_pixels")
URL_KEYS = ("url", "detail", "min_pixels", "max_pixels")
KINDS = ("image_url", "input_image", "image")
IMAGE_PART = {
    "type": "object",
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "properties": {
                "url": {"type": "string"},
                "detail": {"enum": [*DETAILS, None]},
                "min_pixels": {"type": ["integer", "null"], "minimum": 1},
                "max_pixels": {"type": ["integer", "null"], "minimum": 1},
            },
            "required": ["url"],
        },
    },
    "required": ["type", "image_url"],
}
_MEDIA = ("video_url", "video", "input_video")


def image_part(path: Path, part: Mapping[str, Any], *, place: str) -> dict[str, Any] | None:
    """Return OpenAI's, Responses' or Qwen's own part with a picture; None if it is none.

    `place` is the name of the field that the path begins in.
    """
    kind = part.get("type")
    if kind in _MEDIA:
        refuse((*path, "type"), f"is {kind}: send a video's frames as pictures, a part each")
    if kind not in KINDS:
        return None
    key = "image" if kind == "image" and "image" in part else "image_url"
    said = part.get(key)
    inner: Mapping[str, Any] = said if isinstance(said, dict) else {"url": said}
    if kind == "input_image" and part.get("file_id") is not None:
        refuse((*path, "file_id"), "names a file, and none are kept here: send an image_url")
    url = inner.get("url")
    if not isinstance(url, str) or not url:
        refuse((*path, key), "must be a URL, or an object with a url, which is a string")
    named = {
        name: value
        for source in (part, inner)
        for name, value in source.items()
        if value is not None
    }
    return {"type": "image", "image": _source((*path, key), url, named, place)}


def kept_image(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a picture of an item that was checked when it came."""
    found = image_part((), part, place="input")
    assert found is not None
    return found


def image_block(path: Path, block: Mapping[str, Any], *, place: str) -> dict[str, Any]:
    """Return Anthropic's block with a picture."""
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or kind not in ("base64", "url"):
        refuse((*path, "source"), "must be an object of type base64 or url")
    if kind == "url":
        url = source.get("url")
        if not isinstance(url, str) or not url:
            refuse((*path, "source", "url"), "must be a string")
        return {"type": "image", "image": _source((*path, "source"), url, {}, place)}
    media, data = source.get("media_type"), source.get("data")
    if not isinstance(media, str) or not isinstance(data, str):
        refuse((*path, "source"), "must have a media_type and data, which are strings")
    url = f"data:{media};base64,{data}"
    return {"type": "image", "image": _source((*path, "source"), url, {}, place)}


def unknown_keys(part: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the keys of a part, text or picture, that mean nothing here."""
    is_picture = part.get("type") in KINDS
    known = PART_KEYS if is_picture else ("type", "text")
    yield from ((key,) for key in part if key not in known and part[key] is not None)
    for name in ("image_url", "image") if is_picture else ():
        inner = part.get(name)
        if isinstance(inner, dict):
            yield from ((name, key) for key in inner if key not in URL_KEYS)


def joined(parts: Sequence[str | dict[str, Any]]) -> Any:
    """Return checked parts, texts and pictures, as a message's content: a string where all are
    texts, else a list in which neighbouring texts are one.
    """
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts):
        return "\n".join(texts)
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, dict):
            content.append(part)
        elif content and content[-1]["type"] == "text":
            content[-1]["text"] += f"\n{part}"
        else:
            content.append({"type": "text", "text": part})
    return content


def _source(path: Path, url: str, said: Mapping[str, Any], place: str) -> ImageSource:
    if url[:5].lower() != "data:" and len(url) > MAX_URL_CHARACTERS:
        refuse(path, f"must be a data URL, or one of at most {MAX_URL_CHARACTERS} characters")
    detail = said.get("detail")
    if detail is not None and detail not in DETAILS:
        refuse((*path, "detail"), f"must be one of {', '.join(DETAILS)}")
    bounds: dict[str, int | None] = {}
    for name in ("min_pixels", "max_pixels"):
        value = bounds[name] = said.get(name)
        if value is not None and (type(value) is not int or value < 1):
            refuse((*path, name), "must be a positive integer")
    least, most = bounds["min_pixels"], bounds["max_pixels"]
    if least is not None and least > min(most or least, MOST_MIN_PIXELS):
        if most is not None and least > most:
            refuse((*path, "min_pixels"), "must not be more than max_pixels")
        refuse((*path, "min_pixels"), f"must be at most {MOST_MIN_PIXELS}")
    return ImageSource(url, dotted((place, *path)), detail or "auto", **bounds)
