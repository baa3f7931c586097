"""TLS for the wire: both sides show a certificate of one authority; and its non-blocking socket.

Certificates prove who belongs together, not which machine it is: names are not compared, as engines
are found by address and each proves its start's secret besides.
"""

import socket
import ssl
import threading
from dataclasses import dataclass

from workers.errors import ConfigError


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files: this side's certificate and key, and whose certificates are trusted."""

    cert: str
    key: str
    ca: str

    @classmethod
    def of(cls, cert: str, key: str, ca: str) -> "TlsFiles | None":
        """Return None where none is named; raise ConfigError where some are and others are not."""
        if not any((cert, key, ca)):
            return None
        if not all((cert, key, ca)):
            raise ConfigError(
                "TLS between machines needs three files: set --wire-tls-cert, --wire-tls-key and"
                " --wire-tls-ca, or none of them"
            )
        return cls(cert, key, ca)

    def context(self, *, is_server: bool) -> ssl.SSLContext:
        """Return what wraps sockets; raise ConfigError naming the files if they cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.cert, self.key)
            context.load_verify_locations(self.ca)
        except OSError as error:
            raise ConfigError(
                f"{self.cert}, {self.key}, {self.ca}: cannot be used for TLS: {error};"
                " mend --wire-tls-cert, --wire-tls-key and --wire-tls-ca"
            ) from error
        return context


class TlsSocket:
    """A non-blocking TLS socket that behaves as a plain one; two threads may use it, as OpenSSL
    alone would not let them.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._sock.fileno()

    def do_handshake(self) -> None:
        """Go on with TLS's own handshake; raise SSLWantReadError or SSLWantWriteError to wait."""
        self._sock.do_handshake()

    def recv(self, size: int) -> bytes:
        with self._lock:
            try:
                return self._sock.recv(size)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                raise BlockingIOError from error

    def send(self, data: bytes | memoryview) -> int:
        with self._lock:
            try:
                return self._sock.send(data)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                raise BlockingIOError from error

    @property
    def has_pending(self) -> bool:
        """Return whether bytes have been deciphered that no selector knows of."""
        with self._lock:
            return self._sock.pending() > 0

    def close(self) -> None:
        with self._lock:
            self._sock.close()


WireSocket = socket.socket | TlsSocket
