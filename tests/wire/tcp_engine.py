"""An engine on the stub in the process of a test, with a Unix and a TCP socket."""

import socket
import threading
import time

from qwenapi.settings.table import etc_dir
from workers.config import EngineConfig
from workers.wire.connection import connect
from workers.wire.endpoint import Endpoint, endpoint_path
from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.shared_memory import SharedMemory
from workers.worker.stub import StubEngine
from workers.worker.tcp_door import DoorSpec
from workers.worker.worker import Worker
from workers.worker.worker_spec import WorkerSpec

SECRET = b"s" * 32


class TcpEngine:
    """A worker on the stub, which listens on both kinds of socket and runs in a thread."""

    def __init__(self, folder, tls=None, **config):
        self.tls = tls
        self.memory = SharedMemory.create(folder / "engines.shm", ENGINE_LAYOUT, 4)
        config = EngineConfig(str(etc_dir() / "models" / "demo"), stub=True, **config)
        door = DoorSpec("127.0.0.1", SECRET, tls)
        spec = WorkerSpec(3, folder, self.memory.path, door, "node-1")
        row = self.memory.lease(3)
        row.update(generation=time.time_ns(), total_blocks=77)
        self.worker = Worker(StubEngine(config), config, spec, row)
        self.unix, self.tcp = spec.socket_path, endpoint_path(folder, 3)
        self.endpoint = Endpoint(
            host="127.0.0.1",
            port=self.worker.port,
            secret=SECRET,
            node="node-1",
            uses_tls=tls is not None,
        )
        self.endpoint.write(self.tcp)
        self.worker.start()
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()

    @property
    def num_peers(self):
        return len(self.worker._listener._peers)

    @property
    def num_visitors(self):
        return len(self.worker._door._visitors)

    def connect(self, path=None):
        return connect(str(path or self.tcp), "test", self.tls)

    def dial(self):
        return socket.create_connection(("127.0.0.1", self.worker.port), timeout=5)

    def stop(self):
        self.worker.drain()
        self.thread.join(10)
        assert not self.thread.is_alive()
