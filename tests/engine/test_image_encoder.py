"""What the tower saw is kept within a bound, and for the next chunk of a prompt whatever it is."""

from types import SimpleNamespace

import torch

from workers.engine.image_encoder import ImageEncoder
from workers.engine.image_layout import ImagePart
from workers.wire.protocol import Image


class Tower(SimpleNamespace):
    """Sees a float32 a token, and counts what it is shown."""

    device = torch.device("cpu")

    def see(self, images):
        self.shown += [image.digest for image in images]
        return [torch.zeros(1, image.num_tokens, 1) for image in images]


def test_what_is_kept_is_bounded_but_for_what_was_just_seen():
    tower = Tower(shown=[])
    encoder = ImageEncoder(tower, max_bytes=40)
    parts = {
        ("", name): ImagePart(Image(0, 1, size, name, b""), 0, size, 0)
        for name, size in ((b"small", 4), (b"large", 400), (b"other", 5))
    }
    for asked in (b"small", b"large", b"large", b"large", b"other", b"other", b"large"):
        encoder._see({("", asked): parts["", asked]})
    assert tower.shown == [b"small", b"large", b"other", b"large"]
    assert (encoder.num_encoded, encoder.num_found) == (4, 3)
