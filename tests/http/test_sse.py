from flask import Flask

from qwenapi.http.sse import stream


def test_a_stream_has_a_charset_and_is_buffered_nowhere() -> None:
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: stream(iter([b"data: 1\n\n", b"", b"data: 2\n\n"])))
    reply = app.test_client().get("/")
    assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-cache"
    assert reply.headers["X-Accel-Buffering"] == "no"
    assert "Content-Length" not in reply.headers
    assert reply.data == b"data: 1\n\ndata: 2\n\n"
