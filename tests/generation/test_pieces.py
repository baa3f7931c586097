"""An answer's pieces: beats in silence, an ending in words where an engine fails."""

import pytest

from qwenapi.engines.mailbox import Cancelled
from qwenapi.errors import EngineFailed
from qwenapi.generation import pieces
from qwenapi.generation.pieces import sent_pieces


class Failures:
    """Stands for a stream: keeps what it is told."""

    def __init__(self):
        self.told = []

    def fail(self, failure):
        self.told.append(failure)


def sent(made, stream=None):
    return sent_pieces(
        stream or Failures(), made, beat=lambda: b"beat", failed=lambda error: error.name.encode()
    )


def raising(error):
    yield b"a"
    raise error


def test_an_empty_piece_is_a_beat_only_after_a_silence(monkeypatch):
    assert list(sent([b"a", b"", b"b"])) == [b"a", b"b"]
    monkeypatch.setattr(pieces, "BEAT_SECONDS", 0.0)
    assert list(sent([b"a", b"", b"b"])) == [b"a", b"beat", b"b"]


def test_a_failure_of_the_engine_is_the_last_piece():
    assert list(sent(raising(EngineFailed()))) == [b"a", b"engine_failed"]


def test_to_a_caller_who_has_gone_nothing_more_is_said():
    assert list(sent(raising(Cancelled()))) == [b"a"]


def test_a_failure_of_ours_is_counted_as_ours_and_raised():
    stream = Failures()
    with pytest.raises(ZeroDivisionError):
        list(sent(raising(ZeroDivisionError()), stream))
    assert stream.told == ["internal_error"]
