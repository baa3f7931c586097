"""A server for each document's profile, on the stub engine, 5 ms a step."""

import pytest

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


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    yield from _serve(tmp_path_factory, "coder", "--default-max-tokens", "200")


@pytest.fixture(scope="module")
def classic(tmp_path_factory):
    yield from _serve(tmp_path_factory, "qwen2")


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    yield from _serve(tmp_path_factory, "guide")


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    yield from _serve(tmp_path_factory, "news")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    yield from _serve(tmp_path_factory, "all")
