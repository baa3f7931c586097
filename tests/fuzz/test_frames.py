"""Frames between the halves that are nearly right: messages, or a connection that is closed."""

import os
import socket

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.mutations import fuzzing, spoilt
from workers.errors import ProtocolError
from workers.wire.framing import FrameReader, encode
from workers.wire.protocol import (
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    Abort,
    Accepted,
    Attach,
    Chunk,
    Failed,
    Finished,
    Generate,
    Ping,
    Pong,
    SamplingParams,
    Started,
    StepUpdate,
)

ATTACH = encode(Attach(PROTOCOL_VERSION_MIN, PROTOCOL_VERSION, "fuzz"))
GENERATE = encode(
    Generate(wid=1, request_id="r", prompt_ids=(5, 6, 7), params=SamplingParams(max_tokens=3))
)
TO_ENGINE = [ATTACH + encode(Ping(7)), ATTACH + GENERATE, ATTACH + GENERATE + encode(Abort(1))]
UPDATE = StepUpdate(
    started=[Started(1, 0)],
    chunks=[Chunk(1, 0, 0, (5, 6), "stop")],
    finished=[Finished(1, 3, 2)],
    failed=[Failed(2, "internal")],
)
TO_HTTP = [encode(Accepted(1)) + encode(UPDATE), encode(Pong(7)) + encode(UPDATE)]


@fuzzing
@given(st.one_of(spoilt(TO_ENGINE), st.binary(max_size=60)), st.integers(1, 50))
def test_whatever_comes_is_messages_or_a_protocol_error(data, size):
    for side in ("engine", "http"):
        reader = FrameReader(side)
        try:
            for at in range(0, len(data), size):
                reader.feed(data[at : at + size])
        except ProtocolError:
            pass


@fuzzing
@given(spoilt(TO_HTTP))
def test_whatever_an_engine_says_is_messages_or_a_protocol_error(data):
    try:
        FrameReader("http").feed(data)
    except ProtocolError:
        pass


@fuzzing
@given(spoilt(TO_ENGINE))
def test_an_engine_outlives_whatever_is_said_to_it(fuzzed, data):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(fuzzed.run_dir / "engine-0.sock"))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        try:
            while sock.recv(65536):
                pass
        except ConnectionError:
            pass
    os.kill(fuzzed.row()["pid"], 0)
