"""What requests make an interpreter do, as it tells its own audit hooks: nothing but answer."""

import sys

import pytest

from qwenapi.keys import KeyRing
from tests.request_context.test_auth import app_of

# What a caller's words must never lead to.
WATCHED = ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo",
           "pickle.find_class", "exec", "compile", "subprocess.Popen", "os.system")  # fmt: skip
CHAT = "/v1/chat/completions"
NAMES = ["../x", "/etc/passwd", "..", ".", "a\0b", "%2e%2e/x", "x" * 10_000, "\u2025/x", "\u202ex",
         "~root", "file:///etc/passwd", "C:\\x", "qwen-demo/../../x"]  # fmt: skip
ADDRESSES = ["http://127.0.0.1:1/x.png", "https://example.invalid/x", "file:///etc/passwd",
             "ftp://127.0.0.1/x", "http://169.254.169.254/latest/meta-data/",
             "data:image/png;base64,AAAA"]  # fmt: skip
_heard: list[str] | None = None


def _note(event: str, args: tuple[object, ...]) -> None:
    if _heard is not None and event in WATCHED:
        _heard.append(f"{event} {args[:1]!r}"[:200])


@pytest.fixture(scope="module", autouse=True)
def hook():
    """A hook stays for the life of its interpreter: this one listens only when told."""
    sys.addaudithook(_note)


class heard:
    """Collect what the interpreter is made to do while inside."""

    def __enter__(self):
        global _heard
        _heard = []
        return _heard

    def __exit__(self, *_):
        global _heard
        _heard = None


@pytest.fixture(params=["openai", "anthropic", "all"])
def client(request, tmp_path):
    app = app_of(request.param, tmp_path, KeyRing())
    client = app.test_client()
    client.post(CHAT, json={"model": "warm", "messages": []})  # what is read once is read
    return client


def test_the_hook_hears_a_file(tmp_path):
    with heard() as events:
        (tmp_path / "x").write_text("")
    assert any(event.startswith("open ") for event in events)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:20].encode().hex())
def test_a_models_name_is_no_path(client, name):
    messages = [{"role": "user", "content": "hi"}]
    with heard() as events:
        answers = [
            client.post(CHAT, json={"model": name, "messages": messages}),
            client.post("/v1/completions", json={"model": name, "prompt": "hi"}),
            client.post(
                "/v1/messages", json={"model": name, "messages": messages, "max_tokens": 1}
            ),
            client.get("/v1/models/" + name.replace("\0", "%00")),
        ]
    # 503: in its own profile Anthropic's interface takes any name, and there is no engine here.
    assert {answer.status_code for answer in answers} <= {400, 404, 503}
    assert 404 in {answer.status_code for answer in answers}
    assert not events


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", ["image_url", "file_url", "input_image", "video_url"])
def test_no_address_in_a_request_is_asked(client, kind, address):
    part = {"type": kind, kind: {"url": address}}
    shown = f"![a picture]({address}) <img src='{address}'>"
    with heard() as events:
        refused = client.post(CHAT, json={"messages": [{"role": "user", "content": [part]}]})
        client.post(CHAT, json={"messages": [{"role": "user", "content": shown}]})
    # 503: whether a model takes pictures its engine says, and there is none here.
    assert refused.status_code in (400, 404, 503)
    assert not events
