"""Greenlets that last as long as their process: what goes wrong in one is logged, and does not end
it.
"""

import logging
from collections.abc import Callable

import gevent

PAUSE_SECONDS = 1.0

log = logging.getLogger(__name__)


def spawn_lasting(name: str, work: Callable[[], None]) -> None:
    """Run `work`, which does not return, in its own greenlet; after an error it begins anew."""

    def run() -> None:
        while True:
            try:
                work()
            except Exception:
                log.exception("%s failed, and begins anew in %g s", name, PAUSE_SECONDS)
            gevent.sleep(PAUSE_SECONDS)

    gevent.spawn(run)
