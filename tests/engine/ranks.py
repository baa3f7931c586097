"""Drivers of tensor-parallel engines: the first rank in this process, the others in their own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from tests.engine.conftest import Driver
from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.worker.followers import Followers
from workers.worker.rendezvous import by_file, by_tcp

Drive = Callable[..., "RankedDriver"]


class RankedDriver(Driver):
    """An engine of several ranks, and what it has said; `pids` are those of the followers."""

    def __init__(self, engine: Engine, pids: list[int]) -> None:
        super().__init__(engine)
        self.pids = pids


@contextmanager
def ranked(
    model: Path, size: int, folder: Path, *, host: str = "", **settings: object
) -> Iterator[RankedDriver]:
    """Give a new float32 engine of so many ranks, each with one thread; they meet by a file, or at
    a port of `host` as if they were on several machines.
    """
    defaults = {"num_blocks": 400, "block_size": 8, "threads": 1, "dtype": "float32"}
    config = EngineConfig(
        str(model), device="cpu", tensor_parallel_size=size, **(defaults | settings)
    )
    if host:
        config = by_tcp(replace(config, interface="lo", num_local_ranks=size), host)
    elif size > 1:
        config = by_file(config, folder / "engine.rendezvous")
    followers = Followers(config, "engine")
    ends: list[str] = []
    followers.start(lambda why, code: ends.append(why))
    try:
        yield RankedDriver(Engine(config, lambda stage, fraction: None), followers.pids)
        assert not ends, ends
    finally:
        followers.stop()
        if dist.is_initialized():
            dist.destroy_process_group()
