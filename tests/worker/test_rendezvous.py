"""The place where ranks meet: a file that is new, or a port at one address and no other."""

import os
import socket
from urllib.parse import urlsplit

import pytest

from workers.config import EngineConfig
from workers.errors import ConfigError
from workers.worker.rendezvous import by_file, by_tcp

CONFIG = EngineConfig("/m", tensor_parallel_size=4)


def test_a_lost_groups_file_is_not_met_at(tmp_path):
    left = tmp_path / "engine-0.rendezvous"
    left.write_text("an address of somebody who is gone")
    config = by_file(CONFIG, left)
    assert config.rendezvous == left.as_uri() and not left.exists()
    assert config.num_local_ranks == 4


def test_who_waits_for_other_machines_listens_at_its_own_address_alone():
    config = by_tcp(CONFIG, "127.0.0.77")
    try:
        place = urlsplit(config.rendezvous)
        assert (place.scheme, place.hostname) == ("tcp", "127.0.0.77") and place.port
        socket.create_connection((place.hostname, place.port), timeout=10).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", place.port), timeout=10)
    finally:
        os.close(config.rendezvous_fd)


def test_an_address_of_another_machine_is_refused_with_what_to_change():
    with pytest.raises(ConfigError, match="cannot listen at 192.0.2.1: .*--node-ip-address"):
        by_tcp(CONFIG, "192.0.2.1")
