"""SlotFeed: keeps the slot of an engine on another machine up to date in a supervisor's memory.

A thread with a connection of its own to the engine, as an HTTP process has, that asks for nothing.
One that was cut is made anew while the engine's address answers.
"""

import logging
import threading
from pathlib import Path

from workers.errors import WorkerError
from workers.wire.connection import Connection, ConnectionEnded, connect
from workers.wire.protocol import Ping, Pong, SlotUpdate
from workers.wire.shared_memory import SharedMemory
from workers.wire.slot_mirror import SlotMirror
from workers.wire.tls import TlsFiles

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5


class SlotFeed:
    """From `start` to `stop`. `has_slot`: updates have come. `is_refused`: nobody listens there any
    more.
    """

    def __init__(self, path: Path, memory: SharedMemory, engine: int, tls: TlsFiles | None) -> None:
        self.has_slot = self.is_refused = False
        self._path = path
        self._tls = tls
        self._mirror = SlotMirror(memory, engine)
        self._connection: Connection | None = None
        self._is_stopping = threading.Event()
        self._complaint = ""
        self._thread = threading.Thread(target=self._run, name=f"feed-{engine}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give the slot back: whose it was is down."""
        self._is_stopping.set()
        if self._connection is not None:
            self._connection.close()
        self._mirror.end()

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            try:
                self._connection, _ = connect(str(self._path), "supervisor", self._tls)
                self._read(self._connection)
            except ConnectionRefusedError:
                self.is_refused = True
            except ConnectionEnded as error:
                log.debug("%s: %s; tried again", self._path.name, error)
            except (OSError, WorkerError) as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.warning("%s: %s; tried again", self._path.name, error)
            if self._connection is not None:
                self._connection.close()
            self._is_stopping.wait(RETRY_SECONDS)

    def _read(self, connection: Connection) -> None:
        self.is_refused = False
        while not self._is_stopping.is_set():
            for message in connection.receive():
                if isinstance(message, Ping):
                    connection.send(Pong(message.nonce))
                elif isinstance(message, SlotUpdate):
                    self._mirror.take(message)
                    self.has_slot = True
