"""A standby process: imports all that an engine needs, then waits to be told which one it is."""

import logging
import signal
from multiprocessing.connection import Connection

from workers import logs, parent_death
from workers.checkpoint.checkpoint import Checkpoint
from workers.config import EngineConfig
from workers.errors import WorkerError
from workers.worker import process
from workers.worker.held_files import HeldFiles
from workers.worker.openmp import prepare_openmp
from workers.worker.supervisor_pipe import SupervisorPipe

NAME = "engine-standby"

log = logging.getLogger(__name__)


def main(expected: EngineConfig, holds_weights: bool, pipe: Connection) -> None:
    """Wait for an engine's settings, which are expected to be like these; without a supervisor
    there is nothing to wait for.

    With `holds_weights` the model's files are kept in memory, by the engine that follows too.
    """
    parent_death.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: meant for the supervisor
    logs.configure(NAME, expected.log_level, expected.log_format)
    prepare_openmp(expected.threads)
    process.import_engine()
    held = HeldFiles()
    if holds_weights and not pipe.poll():
        _hold_weights(held, expected)
    try:
        config, spec = pipe.recv()  # as a spawned process is given them
    except EOFError:
        return
    if config.model != expected.model:
        held.release()
    process.main(config, spec, SupervisorPipe(pipe))


def _hold_weights(held: HeldFiles, config: EngineConfig) -> None:
    if config.stub:
        return
    try:
        held.hold(Checkpoint.of(config).weights.files)
    except (OSError, WorkerError) as error:  # an engine of them would not start either
        log.warning("weights are not held in memory: %s", error)
