"""The HTTP server process: gunicorn with gevent workers around the Flask application.

Started as `python -m qwenapi.serving.server LISTEN_FD PARENT_FD REPORT_FD`, by http_child. The
application is loaded after the fork: each worker imports it when gevent has patched it.
"""

import faulthandler
import fcntl
import os
import re
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import orjson
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from qwenapi.keys.usage import create_usage_memory
from qwenapi.metrics.store import create_metrics_memory
from qwenapi.serving.graceful_clock import use_monotonic_clock
from qwenapi.serving.listener import FIRST_LISTEN_FD
from qwenapi.serving.patience import PatienceLimits
from qwenapi.serving.startup_config import StartupConfig
from qwenapi.settings.profile import Profiles
from workers import parent_death
from workers.errors import ExitCode
from workers.supervisor.supervised_process import LAME_DUCK_SECONDS

FILES = "/v1/files"
KEEPALIVE_SECONDS = 75
# Of one process; what else it has open are a few files.
MAX_CONNECTIONS, OTHER_DESCRIPTORS = 4000, 96
HUB_STALL_SECONDS = 60
# Those whose callers' turns are kept.
KEEPING_INTERFACES = ("coder", "openai")
# How long a worker may wait for an engine before it takes callers: where there is one, and where it
# must find one.
ENGINE_SECONDS, NEEDED_ENGINE_SECONDS = 5.0, 10.0


class HttpArbiter(Arbiter):
    """gunicorn's arbiter, which shows its supervisor a sign of life whenever it looks around."""

    def murder_workers(self) -> None:
        self.app.report(event="beat")
        super().murder_workers()


class HttpServer(BaseApplication):
    """gunicorn's application object: its settings, and how a worker gets the Flask application."""

    def __init__(
        self,
        startup_config: StartupConfig,
        metrics_store: str,
        usage: str,
        run_dir: Path,
        model_run_dir: Path,
        report_fd: int,
        *,
        needs_engine: bool,
    ) -> None:
        """`metrics_store`, `usage`: the paths of shared memory, empty where none could be made.
        `needs_engine`: the first workers are of no use without one.
        """
        self._settings = startup_config.settings
        self._profiles = startup_config.profiles
        self._metrics_store = metrics_store
        self._usage = usage
        self._run_dir = run_dir
        self._model_run_dir = model_run_dir
        self._report_fd = report_fd
        self._needs_engine = needs_engine
        self._engine: Any = None
        super().__init__()

    @property
    def patience_limits(self) -> PatienceLimits:
        """Return how long a worker waits for those who call."""
        settings = self._settings
        return PatienceLimits(
            idle=KEEPALIVE_SECONDS,
            head=settings.limits_head_timeout,
            silence=settings.limits_socket_timeout,
            max_body_bytes=settings.max_body_bytes,
        )

    def most_body_bytes(self, path: str) -> int:
        """Return how much an address takes beyond the usual, 0 for the usual."""
        is_file = re.sub("/+", "/", path).rstrip("/") == FILES
        return self._settings.batches_max_file_bytes if is_file else 0

    @property
    def connections_per_address(self) -> int:
        return self._settings.limits_connections_per_address

    def load_config(self) -> None:
        options: dict[str, Any] = {
            "worker_class": "qwenapi.serving.fast_worker.FastWorker",
            "workers": self._settings.api_server_count,
            "worker_connections": MAX_CONNECTIONS,
            "keepalive": KEEPALIVE_SECONDS,
            "timeout": HUB_STALL_SECONDS,
            "graceful_timeout": int(self._settings.drain_timeout),
            "backlog": 2048,
            "max_requests": 0,
            "preload_app": False,
            "control_socket_disable": True,
            "accesslog": None,
            "loglevel": "warning",
            "limit_request_line": 4094,
            "limit_request_fields": 64,
            "limit_request_field_size": 8190,
            "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,
            "proc_name": "qwenapi-http",
            "post_fork": _post_fork,
            "post_worker_init": _post_worker_init,
            "worker_abort": _worker_abort,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def run(self) -> None:
        """Be the arbiter until told to stop."""
        HttpArbiter(self).run()

    def report(self, **event: Any) -> None:
        """Tell the supervisor; one that does not listen misses it."""
        try:
            os.write(self._report_fd, orjson.dumps(event) + b"\n")
        except OSError:
            pass

    def load(self) -> Any:
        """Return the WSGI application; called in each worker, after gevent's patches."""
        try:
            return self._load()
        except Exception as error:
            # gunicorn logs it and ends; whoever asked for a reload wants to know why.
            self.report(event="failed", message=f"{type(error).__name__}: {error}")
            raise

    def take_callers(self, *, is_first: bool) -> None:
        """Return when callers can be served, or no engine has turned up for too long."""
        is_needed = self._needs_engine and is_first
        seconds = NEEDED_ENGINE_SECONDS if is_needed else ENGINE_SECONDS
        deadline = time.monotonic() + seconds
        while not self._engine.is_ready and (is_needed or self._has_engine_socket()):
            if time.monotonic() >= deadline:
                if is_needed:
                    message = f"no engine was ready within {seconds:g} s in {self._model_run_dir}"
                    self.report(event="failed", message=message)
                    sys.exit(Arbiter.WORKER_BOOT_ERROR)  # or it would take callers to refuse them
                break
            gevent.sleep(0.02)
        self.report(event="up", pid=os.getpid())

    @property
    def is_refusing(self) -> bool:
        """Return whether this worker takes no new requests."""
        return self._engine is not None and bool(self._engine.is_refusing)

    def discourage(self) -> None:
        """Let readiness be refused from now on, whatever the engines say, and soon requests too."""
        if self._engine is not None and not self._engine.is_discouraged:
            self._engine.is_discouraged = True
            gevent.spawn_later(LAME_DUCK_SECONDS, setattr, self._engine, "is_refusing", True)

    def report_idle(self) -> None:
        """Tell the supervisor that this worker has nothing left to do."""
        self.report(event="idle", pid=os.getpid())

    def say_farewell(self) -> None:
        """Fail what still runs, so that every caller gets an ending and none a cut."""
        self._engine.fail_all("server_shutdown")

    def _has_engine_socket(self) -> bool:
        kinds = ("engine-*.sock", "engine-*.tcp")
        return any(any(self._model_run_dir.glob(kind)) for kind in kinds)

    def _load(self) -> Any:
        from qwenapi.app import create_app
        from qwenapi.cluster.wire_tls import wire_tls
        from qwenapi.engines.client import EngineClient
        from qwenapi.engines.quarantine import Quarantine
        from qwenapi.generation.tokenizers import Tokenizers
        from qwenapi.greenlets import spawn_lasting
        from qwenapi.keys import KeyRing, KeyUsage
        from qwenapi.metrics.store import MetricsStore
        from qwenapi.observability import logs
        from qwenapi.observability.tracing import open_tracer
        from qwenapi.request_context.services import Services
        from qwenapi.serving.batch_answers import new_runner

        logs.configure(self._settings)
        profiles = Profiles(self._profiles)
        tokenizers = Tokenizers(self._own_model_folder())
        name = f"http-{self._settings.port}/{os.getpid()}"
        engine = self._engine = EngineClient(
            self._model_run_dir,
            name,
            tokenizers.prepare,
            Quarantine(self._run_dir),
            wire_tls(self._settings),
        )
        engine.start()
        metrics_store = MetricsStore.lease(
            self._metrics_store, [profile.name for profile in profiles]
        )
        spawn_lasting("the alert monitor", partial(self._monitor, metrics_store, engine))
        keeps = any(map(profiles.of_interface, KEEPING_INTERFACES))
        store = self._open_store() if keeps else None
        tracer = open_tracer(self._settings.otel_endpoint)
        keys = self._settings.auth_keys
        batches = self._open_batches() if profiles.of_interface("openai") else None
        app = create_app(
            Services(
                self._settings,
                profiles,
                engine,
                tokenizers,
                metrics_store,
                store,
                tracer,
                KeyRing(Path(keys) if keys else None, self._settings.api_key),
                KeyUsage.lease(self._usage),
                batches=batches,
            )
        )
        if batches is not None:
            runner = new_runner(app, batches, engine, self._settings)
            spawn_lasting("the batch runner", runner.run)
        return app

    def _own_model_folder(self) -> Path | None:
        """Return where this machine has the model of a cluster's engines, as far as it has it."""
        from qwenapi.hub.fetch import with_cached_model

        if not self._settings.cluster:
            return None
        cached = with_cached_model(self._settings) or self._settings
        return Path(cached.engine_config().model)

    def _monitor(self, metrics_store: Any, engine: Any) -> None:
        from qwenapi.metrics.alerts import CHECK_SECONDS, AlertMonitor, Rules

        max_waiting = {p.name: p.settings.limits_max_waiting for p in self._profiles}
        monitor = AlertMonitor(metrics_store, Rules(self._settings, max_waiting), engine)
        while True:
            monitor.tick()
            gevent.sleep(CHECK_SECONDS)

    def _open_batches(self) -> Any:
        from qwenapi.batches.store import BatchStore
        from qwenapi.settings.run_dir import state_dir

        if not self._settings.batches_max_file_bytes:
            return None
        return BatchStore(state_dir(self._settings) / "batches")

    def _open_store(self) -> Any:
        from gevent.threadpool import ThreadPool

        from qwenapi.conversations import open_store
        from qwenapi.settings.run_dir import state_dir

        store = open_store(
            self._settings.conversations, state_dir(self._settings), run=ThreadPool(4).apply
        )
        store.start()
        return store


def main() -> None:
    """Take over the listening socket and run until told to stop."""
    listen_fd, parent_fd, report_fd = (_move_up(int(fd)) for fd in sys.argv[1:4])
    facts = orjson.loads(_read_line(parent_fd))
    parent_death.hold(parent_fd)
    os.set_blocking(report_fd, False)
    _allow_connections()
    use_monotonic_clock()
    os.dup2(listen_fd, FIRST_LISTEN_FD)
    os.close(listen_fd)
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
    # Tokenizers would start a thread pool of its own in every process; one request is never worth
    # it.
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(name, None)
    startup_config = StartupConfig.from_json(orjson.dumps(facts["startup_config"]))
    run_dir = Path(facts["run_dir"])
    metrics_store = str(create_metrics_memory(run_dir, startup_config.profiles) or "")
    HttpServer(
        startup_config,
        metrics_store,
        str(create_usage_memory(run_dir) or ""),
        run_dir,
        Path(facts["model_run_dir"]),
        report_fd,
        needs_engine=facts["needs_engine"],
    ).run()


def _move_up(fd: int) -> int:
    """Return the descriptor's duplicate above those that gunicorn's will overwrite."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved


def _allow_connections() -> None:
    """Ask the system for as many descriptors as connections are taken, where it has a lower soft
    limit: a common one is 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_DESCRIPTORS
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _read_line(fd: int) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            sys.exit(ExitCode.INTERNAL)
        line += byte
    return bytes(line)


def _post_fork(arbiter: Any, worker: Any) -> None:
    faulthandler.enable()
    # Until it has handlers of its own a worker would swallow SIGTERM in its arbiter's, and then
    # never end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent_death.die_with_parent()


def _post_worker_init(worker: Any) -> None:
    worker.app.take_callers(is_first=worker.age <= worker.cfg.workers)


def _worker_abort(worker: Any) -> None:
    # A hub that has stalled for HUB_STALL_SECONDS would drain for graceful_timeout after gunicorn's
    # SIGABRT.
    faulthandler.dump_traceback(all_threads=True)
    os._exit(ExitCode.INTERNAL)


if __name__ == "__main__":
    main()
