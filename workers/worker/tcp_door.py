"""TcpDoor: lets HTTP processes on other machines in, once they have proved the start's secret.

Ticked and called by the socket thread of an engine's listener; never waits. A stranger costs at
most a few bytes and seconds: no more than what a proof needs is read of it, there is a limit to how
many are at the door, and what is refused is logged once a minute for each reason.
"""

import logging
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from workers.errors import ConfigError, ProtocolError
from workers.wire.connection import HANDSHAKE_SECONDS, keep_watch
from workers.wire.handshake import EngineProof
from workers.wire.tls import TlsFiles, TlsSocket, WireSocket

log = logging.getLogger(__name__)

BACKLOG = 128
MAX_VISITORS = 64
LOG_SECONDS = 60.0


@dataclass(frozen=True)
class DoorSpec:
    """The address to listen at, any port of it; what is to be proved; and TLS's files, if any."""

    host: str
    secret: bytes = field(repr=False)
    tls: TlsFiles | None = None


@dataclass(eq=False)
class _Visitor:
    sock: WireSocket
    address: str
    proof: EngineProof
    give_up_at: float
    needs_tls: bool
    heard: bytes = b""


class TcpDoor:
    """A listening TCP socket, and who has yet to prove itself."""

    def __init__(self, spec: DoorSpec) -> None:
        self._spec = spec
        self._context = spec.tls.context(is_server=True) if spec.tls else None
        self._visitors: dict[_Visitor, None] = {}  # oldest first
        self._refused: dict[str, tuple[float, int]] = {}
        self._is_listening = False
        self._sock = listen(spec.host)
        self._sock.setblocking(False)

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    def open(
        self, selector: selectors.BaseSelector, admit: Callable[[WireSocket, str], None]
    ) -> None:
        """Listen from now on; `admit` takes over a socket whose peer has proved itself."""
        self._selector, self._admit = selector, admit
        self._listen()

    def _listen(self) -> None:
        if not self._is_listening:
            self._selector.register(self._sock, selectors.EVENT_READ, self._accept)
            self._is_listening = True

    def tick(self, now: float) -> None:
        """Send those away who take too long; listen again after a lack of descriptors."""
        self._listen()
        for visitor in list(self._visitors):
            if now >= visitor.give_up_at:
                self._refuse(visitor, "it says nothing")

    def close(self) -> None:
        for visitor in list(self._visitors):
            self._forget(visitor)
            visitor.sock.close()
        self._sock.close()

    def _accept(self) -> None:
        try:
            sock, address = self._sock.accept()
        except OSError as error:
            self._note_refusal("a caller", f"it could not be accepted: {error.strerror}")
            # It would be found waiting again at once, and again.
            self._selector.unregister(self._sock)
            self._is_listening = False
            return
        if len(self._visitors) >= MAX_VISITORS:
            self._refuse(next(iter(self._visitors)), "too many are at the door")
        try:
            wire = self._prepared(sock)
        except OSError as error:  # it has gone again
            sock.close()
            self._note_refusal(address[0], str(error.strerror))
            return
        give_up_at = time.monotonic() + HANDSHAKE_SECONDS
        proof = EngineProof(self._spec.secret)
        visitor = _Visitor(wire, address[0], proof, give_up_at, self._context is not None)
        self._visitors[visitor] = None
        self._selector.register(wire, selectors.EVENT_READ, partial(self._hear, visitor))

    def _prepared(self, sock: socket.socket) -> WireSocket:
        sock.setblocking(False)
        keep_watch(sock)
        if self._context is None:
            return sock
        return TlsSocket(
            self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        )

    def _hear(self, visitor: _Visitor) -> None:
        if visitor not in self._visitors:
            return  # sent away by an event that the selector found together with this one
        try:
            if visitor.needs_tls:
                self._shake_hands(visitor)
            while not visitor.needs_tls and visitor in self._visitors:
                self._read(visitor)
        except BlockingIOError:
            pass  # what is missing is still on its way
        except ssl.SSLError as error:
            self._refuse(visitor, f"TLS failed: {error.reason}")
        except OSError as error:
            self._refuse(visitor, str(error.strerror))
        except ProtocolError as error:
            self._refuse(visitor, str(error))

    def _shake_hands(self, visitor: _Visitor) -> None:
        assert isinstance(visitor.sock, TlsSocket)
        wanted = selectors.EVENT_READ
        try:
            visitor.sock.do_handshake()
            visitor.needs_tls = False
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            wanted = selectors.EVENT_WRITE
        self._selector.modify(visitor.sock, wanted, partial(self._hear, visitor))

    def _read(self, visitor: _Visitor) -> None:
        data = visitor.sock.recv(visitor.proof.num_wanted - len(visitor.heard))
        if not data:
            raise ProtocolError("it went without having proved itself")
        visitor.heard += data
        if len(visitor.heard) < visitor.proof.num_wanted:
            return
        answer, visitor.heard = visitor.proof.feed(visitor.heard), b""
        if not answer:
            self._forget(visitor)
            self._admit(visitor.sock, visitor.address)
        elif visitor.sock.send(answer) < len(answer):
            raise ProtocolError("it does not take a short answer")

    def _refuse(self, visitor: _Visitor, reason: str) -> None:
        self._forget(visitor)
        visitor.sock.close()
        self._note_refusal(visitor.address, reason)

    def _forget(self, visitor: _Visitor) -> None:
        del self._visitors[visitor]
        self._selector.unregister(visitor.sock)

    def _note_refusal(self, address: str, reason: str) -> None:
        now = time.monotonic()
        quiet_until, num_unsaid = self._refused.get(reason, (0.0, 0))
        if now < quiet_until:
            self._refused[reason] = (quiet_until, num_unsaid + 1)
            return
        since = f", and {num_unsaid} more since this was said last" if num_unsaid else ""
        log.warning("refused a connection from %s: %s%s", address, reason, since)
        self._refused[reason] = (now + LOG_SECONDS, 0)


def listen(host: str) -> socket.socket:
    """Return a socket that listens at any port of an address; raise ConfigError of one that is not
    this machine's.
    """
    try:
        family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, 0), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}: {error.strerror}; start this node with an address of its"
            " own: ray start --node-ip-address"
        ) from error
