"""What an engine process tells its supervisor when it cannot go on."""

import multiprocessing

import msgspec
import pytest

from workers.errors import ConfigError, ExitCode
from workers.worker.supervisor_pipe import SupervisorPipe


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which this process does not import."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), ExitCode.OUT_OF_MEMORY, "out of memory while loading it; see"),
        (OutOfMemoryError("CUDA"), ExitCode.OUT_OF_MEMORY, "out of memory while loading it; see"),
        (ConfigError("no such model"), ExitCode.CONFIG, "no such model"),
    ],
)
def test_memory_that_runs_out_at_the_start_has_its_words_and_its_code(error, code, words):
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        pipe = SupervisorPipe(theirs)
        with pytest.raises(SystemExit) as ended, pipe.fatal_errors("while loading it"):
            raise error
        assert ended.value.code == code
        assert msgspec.json.decode(ours.recv_bytes())["message"].startswith(words)


def test_an_error_without_words_for_the_operator_is_not_hidden():
    ours, theirs = multiprocessing.Pipe()
    pipe = SupervisorPipe(theirs)
    with ours, theirs, pytest.raises(ZeroDivisionError), pipe.fatal_errors("while loading it"):
        raise ZeroDivisionError
