from flask import Flask

from qwenapi.http.sse import named_events, stream


def test_a_stream_has_a_charset_and_is_buffered_nowhere() -> None:
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: stream(iter([b"data: 1\n\n", b"", b"data: 2\n\n"])))
    reply = app.test_client().get("/")
    assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-cache"
    assert reply.headers["X-Accel-Buffering"] == "no"
    assert "Content-Length" not in reply.headers
    assert reply.data == b"data: 1\n\ndata: 2\n\n"


def test_a_named_event_has_its_type_as_its_name() -> None:
    assert named_events([{"type": "ping"}, {"type": "message_stop", "text": "你"}]) == (
        b'event: ping\ndata: {"type":"ping"}\n\n'
        + 'event: message_stop\ndata: {"type":"message_stop","text":"你"}\n\n'.encode()
    )
