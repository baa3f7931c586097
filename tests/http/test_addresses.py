"""Doubled slashes and one at the end mean nothing, and nothing is redirected."""

import pytest

from qwenapi.http.addresses import clean
from qwenapi.keys import KeyRing
from tests.request_context.test_auth import app_of


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("//v1///models//", "/v1/models"),
        ("/", "/"),
        ("//", "/"),
        ("", "/"),
        ("/ui/", "/ui/"),
        ("//docs//", "/docs/"),
        ("/docs", "/docs"),
        ("/v1/models/a/b", "/v1/models/a/b"),
    ],
)
def test_an_address_has_one_spelling(path, cleaned):
    assert clean(path) == cleaned


def ask(client, spelling, **options):
    # As the address came: the test client would take what follows two slashes for a host.
    return client.open("/", environ_overrides={"PATH_INFO": spelling}, **options)


@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"model": "Qwen3-32B", "prompt": "x"}),
        ("/generate", {"prompt": "x"}),
        ("/v1/code/generate", {"prompt": "x"}),
        ("/v1/code/chat_stream", {"prompt": "x"}),
    ],
)
def test_a_body_is_read_at_any_spelling(tmp_path, address, body):
    client = app_of("all", tmp_path, KeyRing()).test_client()
    for spelling in (address, address + "/", "/" + address, address.replace("/", "//") + "//"):
        answer = ask(client, spelling, method="POST", json=body)
        assert answer.status_code == 503, spelling  # read, and no engine is up


@pytest.mark.parametrize("address", ["/livez", "/version", "/metrics", "/openapi.json", "/health"])
def test_reports_too(tmp_path, address):
    client = app_of("all", tmp_path, KeyRing()).test_client()
    wanted = client.get(address).status_code
    assert wanted in (200, 503)
    for spelling in (address + "/", "/" + address):
        assert ask(client, spelling).status_code == wanted


def test_pages_keep_their_folders(tmp_path):
    client = app_of("all", tmp_path, KeyRing()).test_client()
    for folder in ("/ui", "/docs"):
        answer = client.get(folder)
        assert answer.status_code == 308 and answer.headers["Location"] == folder[1:] + "/"
        assert client.get(folder + "/").status_code == 200
        assert ask(client, "/" + folder + "//").status_code == 200
