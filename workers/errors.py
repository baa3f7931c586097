"""Errors of the model half, as one tree, and the exit codes its processes end with, in words.

WorkerError
├── ConfigError      the operator must change something   exit 78
│   └── ModelError   the model directory cannot be served exit 78
├── RankLost         another process of an engine is gone
├── ProtocolError    the peer broke the wire contract     closes one connection
└── SharedMemoryError a file of shared memory cannot be used
"""

import signal
from enum import IntEnum


class ExitCode(IntEnum):
    """Named exit codes; 78 is sysexits' EX_CONFIG, after which systemd should not try again.

    Our own supervisor gives up after any of them while a child has never served, and keeps trying
    once it has: the files may be mended.
    """

    OK = 0
    INTERNAL = 70
    OUT_OF_MEMORY = 75
    CONFIG = 78


class WorkerError(Exception):
    """Base of everything the model server raises on purpose."""

    exit_code = ExitCode.INTERNAL


class ConfigError(WorkerError):
    """A setting, file or permission that only the operator can change."""

    exit_code = ExitCode.CONFIG


class ModelError(ConfigError):
    """A model directory that cannot be served; the message names the file and the remedy."""


class RankLost(WorkerError):
    """Another rank of an engine has ended or is out of reach; who must end too, with it."""


class ProtocolError(WorkerError):
    """A frame that breaks the wire contract; the connection it came from is closed."""


class SharedMemoryError(WorkerError):
    """Shared memory that cannot be created, mapped or leased."""


def describe_exit(code: int) -> str:
    """Return an exit code in words: its name, or the signal's."""
    if code < 0:
        return f"signal {_signal_name(-code)}"
    names = {int(known): known.name for known in ExitCode}
    return f"exit code {code}" + (f", {names[code]}" if code in names else "")


def _signal_name(number: int) -> str:
    """Return a signal's name; of the real-time signals only the first and last have their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        is_real_time = signal.SIGRTMIN < number < signal.SIGRTMAX
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if is_real_time else str(number)
