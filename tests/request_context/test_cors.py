"""What a page of another origin may send and read."""

import pytest

from qwenapi.keys import KeyRing
from tests.request_context.test_auth import CHAT, app_of

PAGE = {"Origin": "http://localhost:5173"}
SDK = (
    "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)


def preflight(client, headers, path="/v1/chat/completions", method="POST"):
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return client.options(path, headers=PAGE | asked)


@pytest.mark.parametrize("profile", ["guide", "all"])
@pytest.mark.parametrize("headers", [SDK, "http-referer, x-title", "anthropic-version", "x-a", ""])
def test_an_allowed_page_may_send_what_it_asks_for(tmp_path, profile, headers):
    client = app_of(profile, tmp_path, KeyRing(static="k")).test_client()
    answer = preflight(client, headers)
    assert answer.status_code == 204
    allowed = answer.headers["Access-Control-Allow-Headers"].lower().replace(" ", "").split(",")
    assert set(filter(None, headers.replace(" ", "").split(","))) <= set(allowed)
    assert "Access-Control-Request-Headers" in answer.headers["Vary"]


@pytest.mark.parametrize("headers", ["x\x7fy", "a: b", "é", '"x"', "(x)"])
def test_what_is_no_list_of_headers_is_not_echoed(tmp_path, headers):
    client = app_of("guide", tmp_path, KeyRing()).test_client()
    answer = preflight(client, headers)
    assert answer.headers["Access-Control-Allow-Headers"].startswith("Authorization, ")


@pytest.mark.parametrize("profile", ["openai", "browser", "news", "coder"])
def test_a_page_that_is_not_allowed_is_granted_nothing(tmp_path, profile):
    client = app_of(profile, tmp_path, KeyRing()).test_client()
    answer = preflight(client, SDK)
    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


def test_a_page_may_read_what_was_cut_ignored_and_left_of_its_limits(tmp_path):
    client = app_of("guide", tmp_path, KeyRing()).test_client()
    body = CHAT | {"model": "Qwen3-32B", "whatever": 1}
    answer = client.post("/v1/chat/completions", json=body, headers=PAGE)
    assert answer.status_code == 503 and answer.headers["X-Ignored"] == "whatever"
    exposed = answer.headers["Access-Control-Expose-Headers"].lower().split(", ")
    for name in ("x-ignored", "x-clamped", "x-request-id", "retry-after", "retry-after-ms",
                 "x-ratelimit-remaining-requests", "x-ratelimit-reset-tokens"):  # fmt: skip
        assert name in exposed
