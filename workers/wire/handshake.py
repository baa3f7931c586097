"""Handshake: both ends of a TCP connection prove that they know the start's secret.

Fixed sizes, read to the byte, and nothing else is read before. The secret itself never travels:

    HTTP process                              engine
      "qwenapi1", nonce c ─────────────────────►
      ◄───────────────── nonce e, HMAC-SHA256("engine", c, e)
      HMAC-SHA256("http", c, e) ───────────────►
      frames ⇄                                     as over a Unix socket
"""

import hmac
import secrets
import socket
import time

from workers.errors import ProtocolError

MAGIC = b"qwenapi1"
NONCE_BYTES = PROOF_BYTES = 32
OPENING_BYTES = len(MAGIC) + NONCE_BYTES
ANSWER_BYTES = NONCE_BYTES + PROOF_BYTES


class EngineProof:
    """The engine's part, fed with exactly as many bytes as it asks for: it never waits."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._expected: bytes | None = None

    @property
    def num_wanted(self) -> int:
        """Return how many bytes the next `feed` takes."""
        return OPENING_BYTES if self._expected is None else PROOF_BYTES

    def feed(self, data: bytes) -> bytes:
        """Return what to send; empty: the peer has proved itself. Raise ProtocolError otherwise."""
        if self._expected is not None:
            if not hmac.compare_digest(data, self._expected):
                raise ProtocolError("it does not know the secret")
            return b""
        if not data.startswith(MAGIC):
            raise ProtocolError("it does not speak this protocol")
        nonces = data[len(MAGIC) :], secrets.token_bytes(NONCE_BYTES)
        self._expected = _proof(self._secret, b"http", *nonces)
        return nonces[1] + _proof(self._secret, b"engine", *nonces)


def prove(sock: socket.socket, secret: bytes, seconds: float) -> None:
    """Do the HTTP process's part; raise ProtocolError of a peer that does not know the secret."""
    mine = secrets.token_bytes(NONCE_BYTES)
    sock.sendall(MAGIC + mine)
    answer = _read_exactly(sock, ANSWER_BYTES, time.monotonic() + seconds)
    theirs, proof = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
    if not hmac.compare_digest(proof, _proof(secret, b"engine", mine, theirs)):
        raise ProtocolError("who listens there does not know the engine's secret")
    sock.sendall(_proof(secret, b"http", mine, theirs))


def _proof(secret: bytes, side: bytes, http_nonce: bytes, engine_nonce: bytes) -> bytes:
    return hmac.digest(secret, side + http_nonce + engine_nonce, "sha256")


def _read_exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        sock.settimeout(max(0.01, deadline - time.monotonic()))
        piece = sock.recv(size - len(data))
        if not piece:
            raise ProtocolError("who listens there ends connections at once")
        data += piece
    return data
