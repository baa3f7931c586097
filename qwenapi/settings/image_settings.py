"""ImageSettings: the settings of pictures, a part of the table of Settings (table.py)."""

from dataclasses import dataclass

from qwenapi.settings.setting import row as _row


@dataclass(frozen=True)
class ImageSettings:
    """What may be shown to a model that sees."""

    language_model_only: bool = _row(
        False, "leave the vision tower of a model that sees unloaded; text only", scope="model"
    )
    max_images: int = _row(
        16, "most pictures in one request; 0: none", scope="http", minimum=0, maximum=256
    )
    max_image_pixels: int = _row(
        0, "most pixels a picture is shrunk to; 0: as the model says", scope="http", minimum=0
    )
    allowed_media_domains: tuple[str, ...] = _row(
        (),
        "hosts that pictures are fetched from, *.NAME for those below one; none: data URLs only",
        scope="http",
    )
    media_timeout: float = _row(
        10.0, "seconds in which a picture has to be fetched", scope="http", minimum=0.1
    )
