"""What systemd does for a service, for tests: hands a socket over, listens to its notifications."""

import socket
import sys
from pathlib import Path

# Moves the inherited descriptor to number 3, then becomes the service: LISTEN_PID must name it.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def hand_over(sock: socket.socket) -> dict[str, object]:
    """Return what RunningServer needs to start a service on this listening socket."""
    return {
        "prefix": [sys.executable, "-c", HAND_OVER, str(sock.fileno())],
        "pass_fds": [sock.fileno()],
    }


class Notifications:
    """A notification socket; `messages` are those received so far, each a dict."""

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.address.replace("@", "\0", 1))
        self._sock.setblocking(False)
        self._received: list[dict[str, str]] = []

    @property
    def environ(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address}

    @property
    def messages(self) -> list[dict[str, str]]:
        while True:
            try:
                text = self._sock.recv(65536).decode()
            except BlockingIOError:
                break
            lines = (line.partition("=") for line in text.splitlines())
            self._received.append({name: value for name, _, value in lines})
        return self._received

    def has(self, name: str, value: str = "1") -> bool:
        return any(message.get(name) == value for message in self.messages)

    def close(self) -> None:
        self._sock.close()
