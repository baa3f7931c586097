"""Fields that nobody knows: ignored, named in the answer and counted, or refused if wished."""

import json

import pytest

from qwenapi.keys import KeyRing
from tests.request_context.test_auth import CHAT, app_of

UNKNOWN = {"whatever": 1, "user": "u", "null": None}
REFUSING = """
[auth]
mode = "open"
[api]
unknown_fields = "refuse"
dialect = "{dialect}"
interface = "{interface}"
"""


def post(profile, tmp_path, address, body):
    """Post a body, its fields in their order, to an application without an engine."""
    client = app_of(profile, tmp_path, KeyRing()).test_client()
    return client.post(address, data=json.dumps(body), content_type="application/json")


@pytest.mark.parametrize(
    ("profile", "address", "body"),
    [
        ("openai", "/v1/chat/completions", CHAT),
        ("openai", "/v1/completions", {"prompt": "x"}),
        ("guide", "/v1/chat/completions", CHAT | {"model": "Qwen3-32B"}),
        ("browser", "/api/chat/completions", CHAT | {"model": "MyCoder"}),
        ("news", "/v1/chat/completions", CHAT),
        ("qwen2", "/generate", {"prompt": "x"}),
        ("coder", "/v1/code/generate", {"prompt": "x"}),
        ("all", "/v1/code/chat_stream", {"prompt": "x"}),
    ],
)
def test_every_interface_ignores_and_names_them(tmp_path, profile, address, body):
    answer = post(profile, tmp_path, address, body | UNKNOWN)
    assert answer.status_code == 503  # read, and no engine is up
    assert answer.headers["X-Ignored"] == "whatever, user"


def test_those_inside_messages_and_options_are_named_by_their_place(tmp_path):
    message = {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}
    body = {
        "messages": [message | {"id": 5}],
        "stream": True,
        "stream_options": {"include_obfuscation": False},
        "chat_template_kwargs": {"thinking_mode": "x"},  # the template's to read
    }
    answer = post("openai", tmp_path, "/v1/chat/completions", body)
    assert answer.headers["X-Ignored"] == (
        "messages[0].id, messages[0].content[0].cache_control, stream_options.include_obfuscation"
    )


def test_a_request_that_asks_nothing_unknown_has_no_such_header(tmp_path):
    client = app_of("openai", tmp_path, KeyRing()).test_client()
    answer = client.post("/v1/chat/completions", json=CHAT | {"tools": [], "n": None, "x": None})
    assert "X-Ignored" not in answer.headers


def test_the_header_stays_within_a_kibibyte(tmp_path):
    client = app_of("openai", tmp_path, KeyRing()).test_client()
    body = CHAT | {f"a_field_of_some_length_{i}": 1 for i in range(5000)}
    answer = client.post("/v1/chat/completions", json=body)
    assert 900 < len(answer.headers["X-Ignored"]) <= 1024


@pytest.mark.parametrize(
    ("dialect", "interface", "address", "body", "status"),
    [
        ("openai", "openai", "/v1/chat/completions", CHAT, 400),
        ("flat", "openai", "/v1/completions", {"prompt": "x"}, 400),
        ("fastapi", "generate", "/generate", {"prompt": "x"}, 422),
    ],
)
def test_a_profile_may_refuse_them(tmp_path, dialect, interface, address, body, status):
    path = tmp_path / "strict.toml"
    path.write_text(REFUSING.format(dialect=dialect, interface=interface))
    client = app_of(str(path), tmp_path, KeyRing()).test_client()
    refused = client.post(address, json=body | {"whatever": 1})
    assert refused.status_code == status
    assert "'whatever' is not a field of this request." in refused.get_data(as_text=True)
    assert client.post(address, json=body | {"null": None}).status_code == 503
