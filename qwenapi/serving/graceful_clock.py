"""The clock by which gunicorn ends gracefully: a monotonic one, as the wall clock may be set.

gunicorn 27 measures its graceful_timeout by `time.time`. A clock that is set an hour forward during
a drain would end every stream at once, one set back would let it last an hour.
"""

import time
from types import SimpleNamespace

import gunicorn.arbiter
import gunicorn.workers.ggevent


def use_monotonic_clock() -> None:
    """Let arbiter and workers of this process, and those forked from it, measure by that clock."""
    clock = SimpleNamespace(time=time.monotonic, monotonic=time.monotonic, sleep=time.sleep)
    gunicorn.arbiter.time = clock
    gunicorn.workers.ggevent.time = clock
