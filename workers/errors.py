"""Errors of the model half, as one tree, and the exit codes its processes end with.

WorkerError
├── ConfigError      the operator must change something   exit 78
│   └── ModelError   the model directory cannot be served exit 78
├── ProtocolError    the peer broke the wire contract     closes one connection
└── SharedMemoryError a file of shared memory cannot be used
"""

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


class ProtocolError(WorkerError):
    """A frame that breaks the wire contract; the connection it came from is closed."""


class SharedMemoryError(WorkerError):
    """Shared memory that cannot be created, mapped or leased."""
