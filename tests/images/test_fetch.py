"""Pictures are fetched from allowed public hosts only, in bounded time and size."""

import http.server
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from qwenapi.errors import BadRequest
from qwenapi.images import fetch as module
from qwenapi.images.fetch import Fetcher, is_public

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
    "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1",
    "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    "2001:0:1::", "fec0::1", "64:ff9b:1::a00:1", "::7f00:1", "::ffff:0:7f00:1", "3fff::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_inside_a_network_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_internet_are(address):
    assert is_public(address)


@contextmanager
def serving(answer):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def picture(handler, body=b"picture", **headers):
    handler.send_response(200)
    for name, value in ({"Content_Type": "image/png"} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def to_loopback(address):
    """Stand for a public host, which no test may ask."""
    return address in ("127.0.0.1", "::1")


def fetcher(*domains, seconds=5.0, may_connect=to_loopback):
    return Fetcher(domains or ("localhost",), seconds, may_connect)


def test_the_bytes_of_an_allowed_host_come():
    with serving(picture) as url:
        assert fetcher().fetch(f"{url}/a.png?x=1") == b"picture"


def test_a_private_address_is_refused_whatever_its_name_is():
    asked = []
    with serving(asked.append) as url, pytest.raises(BadRequest, match="no public address"):
        Fetcher(("localhost",), 5.0).fetch(url)
    assert not asked


def test_a_name_with_one_private_address_among_public_ones_is_refused(monkeypatch):
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    with pytest.raises(BadRequest, match="no public address"):
        Fetcher(("example.com",), 5.0).fetch("http://example.com/")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://localhost/a",
        "file:///etc/passwd",
        "http://user:secret@localhost/",
        "http://localhost:99999/",
        "http://[::1/",
        "http://localhost/a b",
        "http:///a",
    ],
)
def test_other_addresses_are_refused(url):
    with pytest.raises(BadRequest):
        fetcher().fetch(url)


def test_only_hosts_that_are_named_are_asked():
    for allowed, host, is_allowed in (
        ("example.com", "example.com", True),
        ("example.com", "a.example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
    ):
        reason = "no public address" if is_allowed else "not fetched from"
        with pytest.raises(BadRequest, match=reason):
            fetcher(allowed, may_connect=lambda _: False)._checked(f"http://{host}/")
            raise BadRequest("no public address")
    with pytest.raises(BadRequest, match="send them as data URLs"):
        Fetcher((), 5.0).fetch("http://example.com/")


def test_a_redirect_is_checked_as_the_first_address_is(monkeypatch):
    def elsewhere(handler):
        handler.send_response(302)
        handler.send_header("Location", "http://metadata.internal/")
        handler.end_headers()

    with (
        serving(elsewhere) as url,
        pytest.raises(BadRequest, match="not fetched from 'metadata.internal'"),
    ):
        fetcher().fetch(url)

    def inside(handler):
        handler.send_response(302)
        handler.send_header("Location", f"http://inside:{handler.server.server_address[1]}/")
        handler.end_headers()

    def resolve(host, port, *args, **kwargs):
        place = ("10.0.0.1", port) if host == "inside" else ("127.0.0.1", port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with serving(inside) as url, pytest.raises(BadRequest, match="no public address"):
        fetcher("localhost", "inside").fetch(url)


def test_redirects_are_followed_and_counted():
    def answer(handler):
        number = int(handler.path.strip("/") or 0)
        if number == 0:
            return picture(handler)
        handler.send_response(301)
        handler.send_header("Location", f"/{number - 1 if number < 9 else 9}")
        handler.end_headers()
        return None

    with serving(answer) as url:
        assert fetcher().fetch(f"{url}/3") == b"picture"
        with pytest.raises(BadRequest, match="more than 3 times"):
            fetcher().fetch(f"{url}/9")


def test_a_slow_host_is_given_up():
    def drip(handler):
        picture(handler, b"")
        try:
            for _ in range(100):
                handler.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    started = time.monotonic()
    with serving(drip) as url, pytest.raises(BadRequest, match="within 0.3 seconds"):
        fetcher(seconds=0.3).fetch(url)
    assert time.monotonic() - started < 3


def test_more_bytes_than_a_picture_may_have_are_not_read(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    for length in ({"Content_Length": "5000"}, {}):
        with (
            serving(lambda h, length=length: picture(h, bytes(5000), **length)) as url,
            pytest.raises(BadRequest, match="more than 1000 bytes"),
        ):
            fetcher().fetch(url)


def test_what_is_no_picture_is_said():
    with (
        serving(lambda h: picture(h, Content_Type="text/html; charset=utf-8")) as url,
        pytest.raises(BadRequest, match="'text/html'"),
    ):
        fetcher().fetch(url)
    with serving(lambda h: h.send_error(404)) as url, pytest.raises(BadRequest, match="status 404"):
        fetcher().fetch(url)
    with (
        serving(lambda h: picture(h, Content_Encoding="gzip")) as url,
        pytest.raises(BadRequest, match="encoding"),
    ):
        fetcher().fetch(url)
