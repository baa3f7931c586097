"""The pieces of a streamed answer: keep-alive beats while it is silent, an error where it fails."""

import time
from collections.abc import Callable, Iterable, Iterator

from qwenapi.engines.mailbox import Cancelled
from qwenapi.errors import ApiError
from qwenapi.generation.stream import GenerationStream

# A little less than the engines' client waits before it asks for a sign of life.
BEAT_SECONDS = 10.0


def sent_pieces(
    stream: GenerationStream,
    pieces: Iterable[bytes],
    *,
    beat: Callable[[], bytes],
    failed: Callable[[ApiError], bytes],
) -> Iterator[bytes]:
    """Yield the pieces that an answer's stream is put into, and nothing to a caller who has gone.

    What may yet become markup is held back, and leaves a piece empty; that alone is no reason for
    a beat.
    """
    said_at = time.monotonic()
    try:
        for piece in pieces:
            if piece or time.monotonic() - said_at >= BEAT_SECONDS:
                said_at = time.monotonic()
                yield piece or beat()
    except Cancelled:
        return
    except ApiError as error:
        yield failed(error)
    except Exception:
        stream.fail("internal_error")  # or closing would call it the caller's doing
        raise
