"""Where the ranks of a tensor-parallel engine find each other, as its first rank prepares it."""

import socket
from dataclasses import replace
from pathlib import Path

from workers.config import EngineConfig
from workers.worker.tcp_door import listen


def by_file(config: EngineConfig, path: Path) -> EngineConfig:
    """Return what the first rank starts with if all are on this machine."""
    path.unlink(missing_ok=True)  # a lost group's
    return replace(
        config, rendezvous=path.absolute().as_uri(), num_local_ranks=config.tensor_parallel_size
    )


def by_tcp(config: EngineConfig, host: str) -> EngineConfig:
    """Return what it starts with if others come from elsewhere: it listens at `host`, and nowhere
    else.
    """
    sock = listen(host)
    port = sock.getsockname()[1]
    place = f"[{host}]" if sock.family == socket.AF_INET6 else host
    return replace(config, rendezvous=f"tcp://{place}:{port}", rendezvous_fd=sock.detach())
