"""Greenlets that last as long as their process, and work that would hold up all others."""

import logging
from collections.abc import Callable
from typing import TypeVar

import gevent
from gevent import get_hub
from gevent.pool import Group

PAUSE_SECONDS = 1.0

T = TypeVar("T")

log = logging.getLogger(__name__)

_unattended = Group()


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


def spawn_unattended(work: Callable[[], None]) -> None:
    """Run work that no connection waits for; a server that stops lets it end like a request."""
    _unattended.spawn(work)


def num_unattended() -> int:
    """Return how much of that work runs in this process."""
    return len(_unattended)


def in_thread(work: Callable[[], T]) -> T:
    """Do work in a thread while the other greenlets run."""

    def outcome() -> tuple[list[T], Exception | None]:
        try:
            return [work()], None
        except Exception as error:
            return [], error  # raised in gevent's thread pool it would be printed there

    done: tuple[list[T], Exception | None] = get_hub().threadpool.apply(outcome)
    if done[1] is not None:
        raise done[1]
    return done[0][0]
