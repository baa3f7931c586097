"""ImageReader: the pictures of one request, from what a caller sent to what the engine takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from gevent.lock import BoundedSemaphore

from qwenapi.errors import BadRequest
from qwenapi.greenlets import in_thread
from qwenapi.images.errors import ImagesUnsupported
from qwenapi.images.fetch import Fetcher
from qwenapi.images.picture import Picture, read_picture
from qwenapi.images.source import ImageSource, data_of
from qwenapi.settings.table import Settings
from workers.checkpoint.vision import VisionConfig
from workers.wire.protocol import Image

# Of all pictures of a request, once they have the model's size.
MAX_PIXEL_BYTES = 48 * 1024 * 1024
# What is decoded at a time in a process: a large picture takes some hundred MB meanwhile.
_decoding = BoundedSemaphore(2)


@dataclass(frozen=True)
class ImageLimits:
    """What the settings allow."""

    most: int = 16
    most_pixels: int = 0
    domains: tuple[str, ...] = ()
    seconds: float = 10.0

    @classmethod
    def of(cls, settings: Settings) -> "ImageLimits":
        return cls(
            settings.max_images,
            settings.max_image_pixels,
            settings.allowed_media_domains,
            settings.media_timeout,
        )


class ImageReader:
    """Reads each picture once, however often a request's prompt is tried."""

    def __init__(
        self,
        vision: VisionConfig | None = None,
        limits: ImageLimits | None = None,
    ) -> None:
        """Without a `vision` the model takes no pictures."""
        self._vision, self._limits = vision, limits or ImageLimits()
        self._fetcher = Fetcher(self._limits.domains, self._limits.seconds)
        self._known: dict[ImageSource, Picture] = {}

    def read(self, sources: Sequence[ImageSource]) -> list[Picture]:
        """Return pictures as the model takes them; raise BadRequest of one that cannot be."""
        if not sources:
            return []
        if self._vision is None:
            raise ImagesUnsupported(param=sources[0].place)
        if len(sources) > self._limits.most:
            raise BadRequest(
                f"The request has {len(sources)} pictures; at most {self._limits.most} are taken.",
                param=sources[self._limits.most].place,
            )
        total = 0
        for source in sources:
            if source not in self._known:
                self._known[source] = self._read(source, self._vision)
            total += len(self._known[source].pixels)
            if total > MAX_PIXEL_BYTES:
                raise BadRequest(
                    f"The request's pictures have more than {MAX_PIXEL_BYTES // 3} pixels in all,"
                    " as the model sees them: send fewer, or smaller ones with 'max_pixels'.",
                    param=source.place,
                )
        return [self._known[source] for source in sources]

    def place(
        self, ids: list[int], pictures: Sequence[Picture]
    ) -> tuple[list[int], tuple[Image, ...]]:
        """Give each picture its tokens in a prompt, where the chat template has put one."""
        if not pictures:
            return ids, ()
        assert self._vision is not None
        token = self._vision.image_token_id
        if ids.count(token) != len(pictures):
            raise BadRequest(
                "The model's chat template has no place for a picture where one is sent."
            )
        placed: list[int] = []
        images: list[Image] = []
        left = iter(pictures)
        for id_ in ids:
            if id_ != token:
                placed.append(id_)
                continue
            picture = next(left)
            images.append(
                Image(len(placed), picture.rows, picture.columns, picture.digest, picture.pixels)
            )
            placed += [token] * picture.num_tokens
        return placed, tuple(images)

    def _read(self, source: ImageSource, vision: VisionConfig) -> Picture:
        try:
            data = None if source.is_data else self._fetcher.fetch(source.url)
            with _decoding:
                return in_thread(partial(self._decode, source, vision, data))
        except BadRequest as error:
            raise BadRequest(error.message, param=source.place) from error

    def _decode(self, source: ImageSource, vision: VisionConfig, data: bytes | None) -> Picture:
        found = data_of(source) if data is None else data
        return read_picture(found, source, vision, self._limits.most_pixels)
