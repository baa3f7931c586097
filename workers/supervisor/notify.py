"""Notifier: tell systemd that the service is ready, reloading, stopping or alive."""

import os
import socket
import time
from collections.abc import MutableMapping


class Notifier:
    """Sends lines to $NOTIFY_SOCKET; without one every call does nothing.

    The variables are taken out of `environ`: a child's message would be taken for ours.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_mine = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environ.pop("WATCHDOG_USEC", "")
        self._pause = int(microseconds) / 2e6 if is_mine and microseconds.isdigit() else 0.0
        self._next_pat = 0.0

    def send(self, **values: str | int) -> None:
        """Send `NAME=value` lines in one datagram; a systemd that is not there loses them."""
        if self._address:
            lines = (f"{name}={' '.join(str(value).split())}" for name, value in values.items())
            text = "\n".join(lines)
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    sock.setblocking(False)
                    sock.sendto(text.encode(), self._address)
            except OSError:
                pass  # it is for information; serving goes on

    def reloading(self) -> None:
        self.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000, STATUS="reloading")

    def pat_watchdog(self, now: float) -> None:
        """Say that all is well, when it is time; call it only while it is."""
        if self._pause and now >= self._next_pat:
            self._next_pat = now + self._pause
            self.send(WATCHDOG=1)
