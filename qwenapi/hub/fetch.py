"""Put a directory in the place of a hub's name, fetched if it must be, before anything starts.

Whoever starts engines asks here first, so that they know directories only. A directory of the same
name wins.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from qwenapi.hub.hub import Hub, Say
from qwenapi.settings.table import Settings
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.hub_name import HubName


def with_local_model(settings: Settings, say: Say) -> Settings:
    """Return the settings with a directory as their model; `say` gets a line for a human."""
    name = HubName.of(settings.model)
    if name is None:
        return settings

    def read(folder: Path) -> Checkpoint:
        return Checkpoint.of(replace(settings, model=str(folder)).engine_config())

    with _ended_by_interrupt():
        return replace(settings, model=str(_hub(settings).fetch(name, read, say)))


def with_cached_model(settings: Settings) -> Settings | None:
    """Return the same without asking the hub; None if the model is not cached, or not whole."""
    name = HubName.of(settings.model)
    if name is None:
        return settings
    folder = _hub(settings).cached(name)
    return None if folder is None else replace(settings, model=str(folder))


@contextmanager
def _ended_by_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process at once: libraries wait for the files their threads fetch."""

    def end(*_: object) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h\n")  # the cursor, which a bar hides
            sys.stderr.flush()
        os._exit(128 + signal.SIGINT)

    previous = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _hub(settings: Settings) -> Hub:
    if settings.model_source == "modelscope":
        from qwenapi.hub.modelscope import ModelScope

        return ModelScope()
    from qwenapi.hub.huggingface import HuggingFace

    return HuggingFace()
