"""A server for each document's profile, on the stub engine, 5 ms a step."""

import pytest

from tests.documents.failing_engine import FailingEngine, http_half
from tests.running_server import RunningServer


def _serve(tmp_path_factory, profile, *flags):
    folder = tmp_path_factory.mktemp(profile)
    flags = ("--stub", "--stub-step-seconds", "0.005", "--profile", profile, *flags)
    server = RunningServer(folder / "run", *flags)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture(scope="session")
def coder(tmp_path_factory):
    yield from _serve(tmp_path_factory, "coder", "--default-max-tokens", "200")


@pytest.fixture(scope="session")
def generate(tmp_path_factory):
    yield from _serve(tmp_path_factory, "qwen2")


@pytest.fixture(scope="session")
def guide(tmp_path_factory):
    yield from _serve(tmp_path_factory, "guide")


@pytest.fixture(scope="session")
def news(tmp_path_factory):
    yield from _serve(tmp_path_factory, "news")


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    yield from _serve(tmp_path_factory, "all")


@pytest.fixture(scope="session")
def everything_at_once(tmp_path_factory):
    """Return a server of all documents whose steps take no time, for answers of full length."""
    yield from _serve(tmp_path_factory, "all", "--stub-step-seconds", "0")


@pytest.fixture(scope="session")
def failing(tmp_path_factory):
    """Return an HTTP half of all profiles whose engine fails every request."""
    yield from _failing(tmp_path_factory, 0)


@pytest.fixture(scope="session")
def failing_late(tmp_path_factory):
    """Return one whose engine gives two tokens first."""
    yield from _failing(tmp_path_factory, 2)


@pytest.fixture(scope="session")
def failing_too_late(tmp_path_factory):
    """Return one whose engine fails in the same breath in which it ends the answer."""
    yield from _failing(tmp_path_factory, 2, ends=True)


def _failing(tmp_path_factory, num_tokens, *, ends=False):
    folder = tmp_path_factory.mktemp("failing")
    engine = FailingEngine(folder, num_tokens, ends=ends)
    with http_half(folder / "run", folder, "all") as server:
        yield server.wait_until_ready()
    engine.close()
