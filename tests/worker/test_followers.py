"""Followers live and end with the first rank of an engine, which hears of the first that ends."""

import os
import queue
import signal
from dataclasses import replace

import psutil
import pytest

from workers.config import EngineConfig
from workers.errors import ExitCode
from workers.worker.followers import Followers
from workers.worker.rendezvous import by_file


@pytest.fixture
def ends():
    return queue.Queue()


@pytest.fixture
def start(tmp_path, ends):
    """Start the followers of an engine whose model is not there."""
    started = []

    def start(size=2, first=0):
        model = str(tmp_path / "nothing")
        config = EngineConfig(model, device="cpu", tensor_parallel_size=size)
        config = replace(by_file(config, tmp_path / "rendezvous"), rank=first)
        followers = Followers(config, "engine-0")
        started.append(followers)
        followers.start(lambda why, code: ends.put((why, code)))
        return followers

    yield start
    for followers in started:
        followers.stop()


def test_what_a_follower_cannot_do_is_told_in_its_own_words(start, ends):
    start()
    why, code = ends.get(timeout=60)
    assert code == ExitCode.CONFIG and "nothing" in why


def test_a_follower_that_is_killed_is_told_by_its_name(start, ends):
    os.kill(start(size=3).pids[1], signal.SIGKILL)
    assert ends.get(timeout=60) == ("engine-0.2 ended (signal SIGKILL)", ExitCode.INTERNAL)


def test_of_those_that_are_stopped_nobody_is_told(start, ends):
    followers = start(size=3)
    pids = followers.pids
    followers.stop()
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids)
    assert ends.empty()


def test_where_the_first_rank_is_elsewhere_all_here_are_followers(start):
    assert len(start(size=2, first=2).pids) == 2


def test_one_rank_has_no_followers(start):
    assert start(size=1).pids == []
