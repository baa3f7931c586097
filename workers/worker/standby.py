"""A standby process: imports all that an engine needs, then waits to be told which one it is."""

import signal
from multiprocessing.connection import Connection

from workers import parent_death
from workers.worker import process
from workers.worker.openmp import prepare_openmp
from workers.worker.supervisor_pipe import SupervisorPipe


def main(threads: int, pipe: Connection) -> None:
    """Wait for an engine's settings; without a supervisor there is nothing to wait for."""
    parent_death.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: meant for the supervisor
    prepare_openmp(threads)
    process.import_engine()
    try:
        config, spec = pipe.recv()  # as a spawned process is given them
    except EOFError:
        return
    process.main(config, spec, SupervisorPipe(pipe))
