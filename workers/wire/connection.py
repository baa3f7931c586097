"""Connection: the HTTP half's socket to one engine, and the handshake of both sides.

Its calls block (the HTTP half's sockets are gevent's); what an engine sends goes by an Outbox. An
engine on this machine has a Unix socket, whose end tells of the engine's; one on another is reached
by TCP, where each has to prove itself, and whoever is silent for too long is taken for gone.
"""

import socket
import struct
import threading
from pathlib import Path

from workers.errors import ProtocolError
from workers.wire.endpoint import Endpoint
from workers.wire.framing import FrameReader, encode
from workers.wire.handshake import prove
from workers.wire.protocol import (
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    Attach,
    FromEngine,
    Hello,
    Message,
)
from workers.wire.tls import TlsFiles

READ_BYTES = 256 * 1024
HANDSHAKE_SECONDS = 5.0
# An engine on another machine sends its figures several times a second, whatever it does; one that
# is silent for so long is gone, or the way there is.
SILENCE_SECONDS = 15.0
AWAKE_SECONDS = 1.0
# What is sent at once, and has to be taken before the peer is taken for gone.
_PIECE = 256 * 1024

_UCRED = struct.Struct("3i")


class ConnectionEnded(Exception):
    """The peer has gone; the truth about everything that was asked over this connection."""


class ConnectionSilent(ConnectionEnded):
    """Nothing came for so long that the peer, or the way to it, must be gone."""


class Connection:
    """The HTTP half's end of a connection to one engine. Sends block; any greenlet may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader("http")
        self._lock = threading.Lock()
        self._early: list[FromEngine] = []
        self._broken_by: ConnectionEnded | None = None

    def send(self, message: Message) -> None:
        frame = memoryview(encode(message))
        with self._lock:
            try:
                for start in range(0, len(frame), _PIECE):
                    self._sock.sendall(frame[start : start + _PIECE])
            except OSError as error:
                is_silent = isinstance(error, TimeoutError)
                ended = (ConnectionSilent if is_silent else ConnectionEnded)(str(error))
                # Half a frame may be on its way: the reader is to see the end, too.
                self._broken_by = ended
                self._shut_down()
                raise ended from error

    def receive(self) -> list[FromEngine]:
        """Wait for bytes; return all messages they complete. Raise ConnectionEnded at the end."""
        if self._early:
            early, self._early = self._early, []
            return early
        try:
            data = b"" if self._broken_by else self._recv()
        except TimeoutError as error:
            raise ConnectionSilent(f"silent for {SILENCE_SECONDS:g} s") from error
        except (OSError, ValueError) as error:  # ValueError: TLS was shut down meanwhile
            raise ConnectionEnded(str(error)) from error
        if self._broken_by:  # what came since may not have been deciphered
            raise self._broken_by
        if not data:
            raise ConnectionEnded("end of stream")
        return self._reader.feed(data)

    def receive_hello(self, path: str) -> Hello:
        """Wait for an engine's first message; raise ProtocolError if it is no Hello."""
        messages: list[FromEngine] = []
        while not messages:
            messages = self.receive()
        hello, *self._early = messages
        if not isinstance(hello, Hello):
            raise ProtocolError(f"expected hello from {path}, got {type(hello).__name__}")
        return hello

    def _recv(self) -> bytes:
        try:
            return self._sock.recv(READ_BYTES)
        except TimeoutError:
            # Whoever has slept with the whole machine finds its time over, and what came meanwhile.
            patience = self._sock.gettimeout()
            self._sock.settimeout(AWAKE_SECONDS)
            data = self._sock.recv(READ_BYTES)
            self._sock.settimeout(patience)
            return data

    def close(self) -> None:
        # shutdown first: a greenlet blocked in recv() wakes with an end of stream instead of
        # waiting for ever.
        self._shut_down()
        self._sock.close()

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def connect(path: str, name: str, tls: TlsFiles | None = None) -> tuple[Connection, Hello]:
    """Connect to the engine that listens at `path`, a Unix socket or the file of an Endpoint, and
    shake hands.

    Raises OSError when nobody listens, ConnectionEnded or ProtocolError when the handshake fails. A
    connect may land in the backlog of a dying process: only the Hello proves that somebody is
    there.
    """
    if path.endswith(".tcp"):
        return _attach(_dial(Endpoint.read(Path(path)), path, tls), path, name, SILENCE_SECONDS)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(HANDSHAKE_SECONDS)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return _attach(sock, path, name, None)


def _dial(endpoint: Endpoint, path: str, tls: TlsFiles | None) -> socket.socket:
    """Return a socket to an engine on another machine, when both ends have proved themselves."""
    if endpoint.uses_tls and tls is None:
        raise ProtocolError(f"{path} wants TLS: set --wire-tls-cert, --wire-tls-key, --wire-tls-ca")
    sock = socket.create_connection((endpoint.host, endpoint.port), timeout=HANDSHAKE_SECONDS)
    try:
        keep_watch(sock)
        if tls is not None:
            sock = tls.context(is_server=False).wrap_socket(sock)
        prove(sock, endpoint.secret, HANDSHAKE_SECONDS)
        sock.settimeout(HANDSHAKE_SECONDS)
    except BaseException:
        sock.close()
        raise
    return sock


def keep_watch(sock: socket.socket) -> None:
    """Let the kernel end a TCP connection whose other machine is gone, and never hold back a frame
    to fill a packet.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_SECONDS * 1000))


def _attach(
    sock: socket.socket, path: str, name: str, silence: float | None
) -> tuple[Connection, Hello]:
    """Say who we are and take the hello; afterwards a silence of so many seconds is an end."""
    is_remote = silence is not None
    try:
        connection = Connection(sock)
        connection.send(Attach(PROTOCOL_VERSION_MIN, PROTOCOL_VERSION, name, is_remote))
        hello = connection.receive_hello(path)
        if not PROTOCOL_VERSION_MIN <= hello.version <= PROTOCOL_VERSION:
            raise ProtocolError(
                f"{path} speaks protocol {hello.version}, this side {PROTOCOL_VERSION}"
            )
    except BaseException:
        sock.close()
        raise
    sock.settimeout(silence)
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
