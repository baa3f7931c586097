"""EngineListener: the socket thread of an engine process, which serves its HTTP processes.

Knows connections by number, and tells a Handler what arrives. The engine loop sends through it from
its own thread; no call here ever waits for a peer. A connection that ends, breaks the contract, or
does not take its bytes is closed, and the handler is told once. Other machines come in by a TcpDoor
and are peers like all others, but for what they cannot see: the engine's slot is sent to them.
"""

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from workers.errors import ConfigError, ExitCode, ProtocolError
from workers.wire.connection import READ_BYTES, agree_version, peer_uid
from workers.wire.framing import FrameReader, encode
from workers.wire.outbox import Outbox
from workers.wire.protocol import Attach, Hello, Message, Ping, Pong, SlotUpdate
from workers.wire.tls import TlsSocket, WireSocket
from workers.worker.tcp_door import TcpDoor

log = logging.getLogger(__name__)

BACKLOG = 128
PING_SECONDS = 2.0
# How often the slot is sent to those who cannot read it, and late strangers are looked for.
SLOT_SECONDS = 0.25
# A peer that neither closes nor answers for so long is stopped or gone with its machine; its work
# is freed. An HTTP process whose hub stalls is ended by gunicorn long before.
SILENCE_SECONDS = 120.0


class Handler(Protocol):
    """What a listener reports to; called in the socket thread."""

    def on_message(self, connection_id: int, message: Message) -> None: ...

    def on_closed(self, connection_id: int) -> None: ...


class Peer:
    """One HTTP process: its socket, what it has sent so far, what it has yet to take."""

    def __init__(self, connection_id: int, sock: WireSocket) -> None:
        self.id = connection_id
        self.sock = sock
        self.reader = FrameReader("engine")
        self.outbox = Outbox(sock)
        self.name = "unnamed"
        self.last_heard = time.monotonic()
        self.is_attached = self.wants_slot = False


class EngineListener:
    """Listens on a Unix socket of mode 0660 for processes of the same user (or root), and behind a
    door for other machines.
    """

    def __init__(
        self,
        path: Path,
        hello: Callable[[int], Hello],
        handler: Handler,
        door: TcpDoor | None = None,
        slot: Callable[[], SlotUpdate] | None = None,
    ) -> None:
        """`hello` returns the greeting for an agreed protocol version, `slot` what is sent to those
        who cannot read it.
        """
        self._path = path
        self._hello = hello
        self._handler = handler
        self._peers: dict[int, Peer] = {}
        self._last_id = 0
        self._doomed: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_closing = False
        self._sock = _listen(path)
        self._selector.register(self._sock, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, self._wake)
        self._is_accepting = True
        self._door = door
        self._slot = slot
        if door is not None:
            door.open(self._selector, self._add)
        self._thread = threading.Thread(target=self._run_or_die, name="socket", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, connection_id: int, message: Message) -> None:
        """Send from any thread; a peer that is too far behind is dropped, one gone ignored."""
        peer = self._peers.get(connection_id)
        if peer is None:
            return
        if not peer.outbox.send(encode(message)):
            self._doomed.add(connection_id)
        elif not peer.outbox.num_waiting_bytes:
            return
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Stop listening; offer peers what they have yet to take once more, then end them."""
        if self._is_closing:
            return
        self._is_closing = True
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(timeout=5)
        os.close(self._wake_fd)

    def _run_or_die(self) -> None:
        try:
            self._run()
        except BaseException:
            # Without this thread the loop would go on showing signs of life, and hear nobody.
            log.critical("the socket thread failed", exc_info=True)
            os._exit(ExitCode.INTERNAL)

    def _run(self) -> None:
        next_ping = time.monotonic() + PING_SECONDS
        next_slot = 0.0
        while not self._is_closing:
            for key, events in self._selector.select(SLOT_SECONDS if self._door else PING_SECONDS):
                if isinstance(key.data, Peer):
                    self._serve(key.data, events)
                else:
                    key.data()
            if (now := time.monotonic()) >= next_ping:
                next_ping = now + PING_SECONDS
                self._ping(now)
            if self._door is not None and now >= next_slot:
                next_slot = now + SLOT_SECONDS
                self._door.tick(now)
                self._send_slot()
        self._end()

    def _end(self) -> None:
        self._path.unlink(missing_ok=True)
        self._send_slot()
        if self._door is not None:
            self._door.close()
        for peer in list(self._peers.values()):
            peer.outbox.flush()
            self._drop(peer, "engine stops")
        self._selector.close()
        self._sock.close()

    def _ping(self, now: float) -> None:
        if not self._is_accepting:
            self._is_accepting = True
            self._selector.register(self._sock, selectors.EVENT_READ, self._accept)
        for peer in list(self._peers.values()):
            if now - peer.last_heard > SILENCE_SECONDS:
                self._drop(peer, "silent for too long")
            elif peer.is_attached:
                self.send(peer.id, Ping(int(now)))

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:  # out of descriptors: whoever waits is taken at the next ping
            log.warning("cannot accept a connection: %s", error)
            self._is_accepting = False
            self._selector.unregister(self._sock)
            return
        if peer_uid(sock) not in (os.getuid(), 0):
            log.warning("refused a connection from uid %d", peer_uid(sock))
            sock.close()
            return
        sock.setblocking(False)
        self._add(sock, "this machine")

    def _add(self, sock: WireSocket, address: str) -> None:
        log.debug("connection %d is from %s", self._last_id + 1, address)
        self._last_id += 1
        peer = Peer(self._last_id, sock)
        self._peers[peer.id] = peer
        self._selector.register(sock, selectors.EVENT_READ, peer)
        self._read_pending(peer)

    def _send_slot(self) -> None:
        wanting = [peer.id for peer in list(self._peers.values()) if peer.wants_slot]
        if wanting and self._slot is not None:
            update = self._slot()
            for connection_id in wanting:
                self.send(connection_id, update)

    def _wake(self) -> None:
        os.eventfd_read(self._wake_fd)
        while self._doomed:
            if peer := self._peers.get(self._doomed.pop()):
                self._drop(peer, "it does not take its tokens")
        for peer in self._peers.values():
            if peer.outbox.num_waiting_bytes:
                self._selector.modify(peer.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)

    def _serve(self, peer: Peer, events: int) -> None:
        if peer.id not in self._peers:
            return
        if events & selectors.EVENT_WRITE:
            if not peer.outbox.flush():
                return self._drop(peer, "broken pipe")
            if not peer.outbox.num_waiting_bytes:
                self._selector.modify(peer.sock, selectors.EVENT_READ, peer)
        if events & selectors.EVENT_READ:
            self._read(peer)
            self._read_pending(peer)

    def _read_pending(self, peer: Peer) -> None:
        while peer.id in self._peers and isinstance(peer.sock, TlsSocket) and peer.sock.has_pending:
            self._read(peer)

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            return self._drop(peer, str(error))
        if not data:
            return self._drop(peer, "end of stream")
        peer.last_heard = time.monotonic()
        try:
            for message in peer.reader.feed(data):
                self._receive(peer, message)
        except ProtocolError as error:
            self._drop(peer, str(error))

    def _receive(self, peer: Peer, message: Message) -> None:
        if isinstance(message, Attach):
            if peer.is_attached:
                raise ProtocolError("attached twice")
            peer.name, peer.is_attached, peer.wants_slot = message.name, True, message.wants_slot
            self.send(peer.id, self._hello(agree_version(message)))
            log.info("%s attached", peer.name)
        elif not peer.is_attached:
            raise ProtocolError(f"{type(message).__name__} before attach")
        elif not isinstance(message, Pong):
            self._handler.on_message(peer.id, message)

    def _drop(self, peer: Peer, reason: str) -> None:
        del self._peers[peer.id]
        self._selector.unregister(peer.sock)
        peer.sock.close()
        log.info("%s detached: %s", peer.name, reason)
        if peer.is_attached:
            self._handler.on_closed(peer.id)


def _listen(path: Path) -> socket.socket:
    """Bind the path with mode 0660, replacing a socket file nobody listens on."""
    if path.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise ConfigError(
                    f"{path}: another engine listens here; stop it or choose another --run-dir"
                )
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o117)
    try:
        sock.bind(str(path))
    finally:
        os.umask(umask)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock
