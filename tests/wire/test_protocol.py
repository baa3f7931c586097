import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import ProtocolError
from workers.wire.framing import MAX_FRAME_BYTES, FrameReader, encode
from workers.wire.protocol import (
    Abort,
    Accepted,
    Attach,
    Chunk,
    Failed,
    Finished,
    Generate,
    Hello,
    ModelCard,
    Ping,
    Pong,
    Rejected,
    SamplingParams,
    SlotUpdate,
    Started,
    StepUpdate,
    TokenLogprob,
    wire_id,
)

CARD = ModelCard(
    model_dir="/m",
    model_hash="h",
    tokenizer_sha256="t",
    architecture="Qwen3ForCausalLM",
    max_model_len=8192,
    vocab_size=2000,
    eos_token_ids=(1, 2),
    generation_config={"temperature": 0.6},
    dtype="float32",
    device="cpu",
    block_size=32,
    num_blocks=100,
    max_num_seqs=4,
    max_num_batched_tokens=512,
)
GENERATE = Generate(
    wid=wire_id(3, 2),
    request_id="r",
    prompt_ids=(1, 2, 3),
    params=SamplingParams(
        max_tokens=4, logit_bias={7: -100.0}, seed=-5, stop_token_ids=(9,), logprobs=3
    ),
    choices=(0, 2),
    resume=((5,), ()),
)
TO_ENGINE = [Attach(1, 1, "http"), GENERATE, Abort(5), Abort(5, (1,)), Ping(1), Pong(2)]
FROM_ENGINE = [
    Hello(1, 123, 0, "/page", CARD),
    Accepted(1),
    Rejected(wid=1, reason="queue_full", queue_size=3, max_queue_size=10, retry_after=7),
    StepUpdate(
        started=[Started(1, 64)],
        chunks=[
            Chunk(1, 0, 5, (7, 8), "stop", 8, (TokenLogprob(7, -0.5, (7, 9), (-0.5, -1.5)),)),
            Chunk(2, 1, 0, (3,)),
        ],
        finished=[Finished(1, 3, 7)],
        failed=[Failed(2, "queue_timeout")],
    ),
    Ping(1),
    Pong(2),
    Hello(1, 123, 0, "/page", CARD, "node-1"),
    SlotUpdate(1 << 62, 5, (0, -1, 1 << 62)),
]


@pytest.mark.parametrize(("side", "messages"), [("engine", TO_ENGINE), ("http", FROM_ENGINE)])
def test_every_message_survives_the_wire_however_its_bytes_are_cut(side, messages):
    stream = b"".join(map(encode, messages))
    for size in (1, 2, 3, 7, len(stream)):
        reader = FrameReader(side)
        received = [
            m for i in range(0, len(stream), size) for m in reader.feed(stream[i : i + size])
        ]
        assert received == messages


def test_the_wire_id_holds_serial_and_epoch():
    assert GENERATE.epoch == 2
    assert wire_id(3, 2) != wire_id(3, 3) != wire_id(4, 3)


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_and_nothing_else(garbage):
    frame = struct.pack(">I", len(garbage)) + garbage
    try:
        assert len(FrameReader("engine").feed(frame)) == 1
    except ProtocolError:
        pass


def test_a_frame_longer_than_allowed_is_refused_by_its_length_alone():
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        FrameReader("engine").feed(struct.pack(">I", MAX_FRAME_BYTES + 1))


def test_a_message_of_the_other_direction_is_refused():
    with pytest.raises(ProtocolError, match="malformed"):
        FrameReader("engine").feed(encode(Accepted(1)))
