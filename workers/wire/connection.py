"""Connection: the HTTP half's socket to one engine, and the handshake of both sides.

Its calls block (the HTTP half's sockets are gevent's); what an engine sends goes by an Outbox.
"""

import socket
import struct
import threading

from workers.errors import ProtocolError
from workers.wire.framing import FrameReader, encode
from workers.wire.protocol import (
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    Attach,
    FromEngine,
    Hello,
    Message,
)

READ_BYTES = 256 * 1024
HANDSHAKE_SECONDS = 5.0

_UCRED = struct.Struct("3i")


class ConnectionEnded(Exception):
    """The peer has gone; the truth about everything that was asked over this connection."""


class Connection:
    """The HTTP half's end of a connection to one engine. Sends block; any greenlet may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader("http")
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        frame = encode(message)
        with self._lock:
            try:
                self._sock.sendall(frame)
            except OSError as error:
                raise ConnectionEnded(str(error)) from error

    def receive(self) -> list[FromEngine]:
        """Wait for bytes; return all messages they complete. Raise ConnectionEnded at the end."""
        try:
            data = self._sock.recv(READ_BYTES)
        except OSError as error:
            raise ConnectionEnded(str(error)) from error
        if not data:
            raise ConnectionEnded("end of stream")
        return self._reader.feed(data)

    def close(self) -> None:
        # shutdown first: a greenlet blocked in recv() wakes with an end of stream instead of
        # waiting for ever.
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()


def connect(path: str, name: str) -> tuple[Connection, Hello]:
    """Connect to the engine that listens at `path` and shake hands.

    Raises OSError when nobody listens, ConnectionEnded or ProtocolError when the handshake fails. A
    connect may land in the backlog of a dying process: only the Hello proves that somebody is
    there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(HANDSHAKE_SECONDS)
        sock.connect(path)
        connection = Connection(sock)
        connection.send(Attach(PROTOCOL_VERSION_MIN, PROTOCOL_VERSION, name))
        messages: list[FromEngine] = []
        while not messages:
            messages = connection.receive()
        hello = messages.pop(0)
        if not isinstance(hello, Hello) or messages:
            raise ProtocolError(f"expected hello from {path}, got {type(hello).__name__}")
        if not PROTOCOL_VERSION_MIN <= hello.version <= PROTOCOL_VERSION:
            raise ProtocolError(
                f"{path} speaks protocol {hello.version}, this side {PROTOCOL_VERSION}"
            )
    except BaseException:
        sock.close()
        raise
    sock.settimeout(None)
    return connection, hello


def agree_version(attach: Attach) -> int:
    """Return the highest protocol version both sides speak, or raise ProtocolError."""
    version = min(PROTOCOL_VERSION, attach.version_max)
    if version < max(PROTOCOL_VERSION_MIN, attach.version_min):
        raise ProtocolError(
            f"{attach.name} speaks protocol {attach.version_min}-{attach.version_max}, "
            f"this engine {PROTOCOL_VERSION_MIN}-{PROTOCOL_VERSION}"
        )
    return version


def peer_uid(sock: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket (SO_PEERCRED)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _pid, uid, _gid = _UCRED.unpack(credentials)
    return int(uid)
