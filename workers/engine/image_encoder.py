"""ImageEncoder: what the tower sees of pictures, computed before the step that needs it and kept.

What is kept is known by what a picture shows and is bounded in bytes; the longest unused goes
first. A picture that is needed again is computed again: its pixels stay with its request. Knows
rows of a batch; refuses to know who runs next.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workers.engine.batch import Row
from workers.engine.image_layout import ImagePart
from workers.model.layout.device_copy import to_device
from workers.model.layout.sight import Sight
from workers.model.vision_tower import VisionTower
from workers.wire.protocol import Image

# Of what was seen, as many bytes are kept beside what the newest step needs.
MAX_KEPT_BYTES = 256 << 20
# Pictures of so many tokens in all go through the tower together; a larger one goes alone.
_MOST_TOKENS = 4096

# A caller's salt, which keeps caches apart, and a picture's digest.
_Key = tuple[str, bytes]


@dataclass
class _Places:
    """What rows of a flat batch have of pictures, and where."""

    positions: list[np.ndarray] = field(default_factory=list)
    where: list[np.ndarray] = field(default_factory=lambda: [np.empty(0, np.int64)])
    parts: list[tuple[_Key, ImagePart]] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "_Places":
        places, end = cls(), 0
        for row in rows:
            request = row.sequence.request
            if request.images is None:
                plain = np.arange(row.start, row.stop)
                places.positions.append(np.broadcast_to(plain, (3, row.num_tokens)))
            else:
                places.positions.append(request.images.positions(row.start, row.stop))
                for part in request.images.within(row.start, row.stop):
                    key = request.generate.cache_salt, part.image.digest
                    places.parts.append((key, part))
                    first = end + part.at
                    places.where.append(np.arange(first, first + part.stop - part.first))
            end += row.num_tokens
        return places


class ImageEncoder:
    """The tower of an engine, and what it has seen."""

    def __init__(self, tower: VisionTower, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self.num_encoded = self.num_found = 0
        self.seconds = 0.0  # spent in the tower for the newest step
        self._tower, self._max_bytes = tower, max_bytes
        self._kept: OrderedDict[_Key, Tensor] = OrderedDict()
        self._num_bytes = 0

    def sight(self, rows: Sequence[Row]) -> Sight | None:
        """Return what a flat batch of these rows needs; None where no prompt has pictures."""
        self.seconds = 0.0
        if all(row.sequence.request.images is None for row in rows):
            return None
        places, device = _Places.of(rows), self._tower.device
        seen = self._see(dict(places.parts))
        features = [seen[key][:, part.first : part.stop] for key, part in places.parts]
        return Sight(
            to_device(torch.from_numpy(np.concatenate(places.positions, axis=1)), device),
            to_device(torch.from_numpy(np.concatenate(places.where)), device),
            torch.cat(features, dim=1) if features else torch.empty(1, 0, 0, device=device),
        )

    def _see(self, wanted: Mapping[_Key, ImagePart]) -> dict[_Key, Tensor]:
        """Return what is seen of pictures, by the tower where it is not known."""
        seen: dict[_Key, Tensor] = {}
        missing: dict[_Key, Image] = {}
        for key, part in wanted.items():
            if key in self._kept:
                self._kept.move_to_end(key)
                seen[key] = self._kept[key]
            else:
                missing[key] = part.image
        self.num_found += len(seen)
        if missing:
            started = time.perf_counter()
            for together in _cut(missing):
                found = self._tower.see(list(together.values()))
                seen |= zip(together, found, strict=True)
            self._keep({key: seen[key] for key in missing})
            self.num_encoded += len(missing)
            self.seconds = time.perf_counter() - started
        return seen

    def _keep(self, found: Mapping[_Key, Tensor]) -> None:
        for key, features in found.items():
            # A copy: a part of what was computed together would hold all of it.
            self._kept[key] = features.clone()
            self._num_bytes += features.numel() * features.itemsize
        # What was just found stays for the next chunk of its prompt, however large it is.
        while self._num_bytes > self._max_bytes and next(iter(self._kept)) not in found:
            _, oldest = self._kept.popitem(last=False)
            self._num_bytes -= oldest.numel() * oldest.itemsize


def _cut(images: Mapping[_Key, Image]) -> Iterator[dict[_Key, Image]]:
    """Cut pictures into those that go through the tower together."""
    together: dict[_Key, Image] = {}
    num_tokens = 0
    for key, image in images.items():
        if together and num_tokens + image.num_tokens > _MOST_TOKENS:
            yield together
            together, num_tokens = {}, 0
        together[key] = image
        num_tokens += image.num_tokens
    yield together
