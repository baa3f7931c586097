"""Whether the pictures of a request are as the model takes them, and how large they are."""

from workers.wire.protocol import Generate, ModelCard

_COLOURS = 3
_DIGEST_BYTES = 32


def are_images_right(request: Generate, card: ModelCard) -> bool:
    """Return whether each has its pixels and, behind the one before it, its tokens in the prompt,
    which are nowhere else.
    """
    token_bytes = _COLOURS * card.image_side**2
    behind = num_tokens = 0
    for image in request.images:
        stop = image.position + image.num_tokens
        if (
            token_bytes == 0
            or request.pooling is not None
            or min(image.rows, image.columns) < 1
            or image.position < behind
            or len(image.digest) != _DIGEST_BYTES
            or len(image.pixels) != image.num_tokens * token_bytes
            or set(request.prompt_ids[image.position : stop]) != {card.image_token_id}
            or stop > len(request.prompt_ids)
        ):
            return False
        behind, num_tokens = stop, num_tokens + image.num_tokens
    return not request.images or request.prompt_ids.count(card.image_token_id) == num_tokens


def image_bytes(request: Generate) -> int:
    """Return how many bytes of pixels a request brings."""
    return sum(len(image.pixels) for image in request.images)
