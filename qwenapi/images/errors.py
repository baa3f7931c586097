"""What is said of pictures to a model that takes none."""

from qwenapi.errors import BadRequest


class ImagesUnsupported(BadRequest):
    """The model, or the engine that serves it, reads text alone."""

    code = "images_unsupported"
    sentence = (
        "This model takes text only here: pictures need one that sees, as Qwen3-VL or Qwen3.5, on"
        " an engine of one rank and without --language-model-only."
    )
