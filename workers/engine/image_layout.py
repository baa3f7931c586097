"""ImageLayout: where a prompt's pictures are among its tokens, and how positions count there.

    tokens      a  b  ▣  ▣  ▣  ▣  ▣  ▣  c      a picture of 2 rows and 3 columns
    time        0  1  2  2  2  2  2  2  5
    row         0  1  2  2  2  3  3  3  5      what follows goes on behind the larger of its sides
    column      0  1  2  3  4  2  3  4  5

Knows numbers alone. Refuses to know pixels and tensors.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from workers.wire.protocol import Image


class ImagePart(NamedTuple):
    """Of a picture's tokens, those from `first` to `stop`, which begin at place `at` of a row."""

    image: Image
    first: int
    stop: int
    at: int


class ImageLayout:
    """The pictures of one prompt of `num_tokens`."""

    def __init__(self, images: tuple[Image, ...], num_tokens: int) -> None:
        self._images, self._num_tokens = images, num_tokens

    @cached_property
    def shift(self) -> int:
        """What is added to the number of a token behind the prompt to get its position."""
        return sum(max(image.rows, image.columns) - image.num_tokens for image in self._images)

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Return the positions `[3, tokens]` of tokens, of which some may be behind the prompt."""
        known = self._of_prompt[:, start:stop]
        behind = np.arange(max(start, self._num_tokens), stop) + self.shift
        return np.concatenate((known, np.broadcast_to(behind, (3, len(behind)))), axis=1)

    def within(self, start: int, stop: int) -> Iterator[ImagePart]:
        """Yield what of pictures there is in a row of tokens."""
        for image in self._images:
            first = max(start, image.position)
            last = min(stop, image.position + image.num_tokens)
            if first < last:
                begin = image.position
                yield ImagePart(image, first - begin, last - begin, first - start)

    def content_ids(self, token_ids: list[int]) -> list[int]:
        """Return tokens in which a picture's are named by what it shows, as no token is."""
        named = list(token_ids)
        for image in self._images:
            stop = image.position + image.num_tokens
            named[image.position : stop] = [-1 - int.from_bytes(image.digest)] * image.num_tokens
        return named

    @cached_property
    def _of_prompt(self) -> np.ndarray:
        positions = np.empty((3, self._num_tokens), np.int64)
        token = position = 0
        for image in self._images:
            count = image.position - token
            positions[:, token : image.position] = np.arange(position, position + count)
            token, position = image.position, position + count
            stop = token + image.num_tokens
            rows, columns = np.divmod(np.arange(image.num_tokens), image.columns)
            positions[:, token:stop] = np.stack((0 * rows, rows, columns)) + position
            token, position = stop, position + max(image.rows, image.columns)
        count = self._num_tokens - token
        positions[:, token:] = np.arange(position, position + count)
        return positions
