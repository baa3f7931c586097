"""An engine process from spawn to exit: load the engine, serve until drained, say why it ends."""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable

from workers import logs
from workers.config import EngineConfig
from workers.engine_core import EngineCore
from workers.errors import ExitCode, RankLost
from workers.wire.engine_stats import ENGINE_GAUGES, ENGINE_LAYOUT, Phase
from workers.wire.shared_memory import SharedMemory
from workers.worker.followers import Followers
from workers.worker.openmp import prepare_openmp
from workers.worker.rendezvous import by_file, by_tcp
from workers.worker.supervisor_pipe import SupervisorPipe
from workers.worker.worker import Worker
from workers.worker.worker_spec import WorkerSpec

LOADING_TIMEOUT = 900.0


def main(config: EngineConfig, spec: WorkerSpec, pipe: SupervisorPipe) -> None:
    """Run an engine process from its spawn to its end; the exit code says why it ended."""
    os.setsid()
    pipe.end_with_supervisor()
    # Also on SIGABRT, the supervisor's way of asking a hung engine where it hangs.
    faulthandler.enable()
    logs.configure(spec.name, config.log_level, config.log_format)
    with pipe.fatal_errors("before the model is loaded"):
        config = _with_rendezvous(config, spec, pipe)
    followers = Followers(config, spec.name)
    try:
        _serve(config, followers, spec, pipe)
    except RankLost as error:
        followers.let_watcher_end_us()
        pipe.fatal(str(error))
        sys.exit(error.exit_code)
    except Exception:
        followers.let_watcher_end_us()  # else what failed is this rank
        raise
    finally:
        followers.stop()  # the interpreter would wait for them at its end


def import_engine() -> None:
    """Import all that an engine needs, of which torch is most."""
    import workers.engine.engine  # noqa: F401


def _with_rendezvous(config: EngineConfig, spec: WorkerSpec, pipe: SupervisorPipe) -> EngineConfig:
    """Prepare the place where all ranks meet, and tell it where some are on other machines."""
    if config.stub:
        return config
    if config.interface:
        assert spec.door is not None
        config = by_tcp(config, spec.door.host)
        pipe.rendezvous(config.rendezvous)
    elif config.tensor_parallel_size > 1:
        config = by_file(config, spec.run_dir / f"{spec.name}.rendezvous")
    return config


def _serve(
    config: EngineConfig, followers: Followers, spec: WorkerSpec, pipe: SupervisorPipe
) -> None:
    with pipe.fatal_errors(f"while loading {config.model}"):
        worker = _start(config, followers, spec, pipe)
    signal.signal(signal.SIGTERM, lambda *_: worker.drain())
    worker.start()
    pipe.ready(worker.port)
    worker.run()
    sys.exit(ExitCode.OK)


def _start(
    config: EngineConfig, followers: Followers, spec: WorkerSpec, pipe: SupervisorPipe
) -> Worker:
    prepare_openmp(config.threads)
    row = SharedMemory.open(spec.shared_memory_path, ENGINE_LAYOUT).lease(spec.index)
    row.update(
        pid=os.getpid(),
        starts=row["starts"] + 1,
        generation=time.time_ns(),
        phase=Phase.LOADING,
        beat_ns=time.monotonic_ns(),
        step_timeout_ns=int(LOADING_TIMEOUT * 1e9),
        **dict.fromkeys(ENGINE_GAUGES, 0),
    )

    def progress(what: str, fraction: float) -> None:
        row["beat_ns"] = time.monotonic_ns()
        pipe.progress(what, fraction)

    def on_end(why: str, code: int) -> None:
        pipe.fatal(why)
        os._exit(code)

    if not config.stub:
        followers.start(on_end)
    return Worker(_load_engine(config, progress), config, spec, row)


def _load_engine(config: EngineConfig, progress: Callable[[str, float], None]) -> EngineCore:
    """Return the engine, or its stub; torch is imported only here."""
    if config.stub:
        from workers.worker.stub import StubEngine

        return StubEngine(config)
    from workers.engine.engine import Engine

    return Engine(config, progress)
