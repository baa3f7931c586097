"""Messages as bytes: a big-endian uint32 length, then one msgpack array that begins with a tag."""

import struct
from typing import Any, Literal

import msgspec

from workers.errors import ProtocolError
from workers.wire.protocol import FromEngine, Message, ToEngine

# A request brings the pixels of its pictures.
MAX_FRAME_BYTES = 64 * 1024 * 1024

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()
_decode_to_engine = msgspec.msgpack.Decoder(ToEngine)
_decode_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode(message: Message) -> bytes:
    """Return the frame of one message; raise ProtocolError if it is larger than a frame may be."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cut a byte stream into the messages one side of the wire may receive."""

    def __init__(self, side: Literal["engine", "http"]) -> None:
        self._decode = (_decode_to_engine if side == "engine" else _decode_from_engine).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Return all messages completed by `data`; raise ProtocolError of a frame that is none."""
        self._buffer += data
        messages = []
        start, end = 0, len(self._buffer)
        with memoryview(self._buffer) as view:
            while end - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(view, start)
                if length > MAX_FRAME_BYTES:
                    raise ProtocolError(
                        f"frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}"
                    )
                stop = start + _LENGTH.size + length
                if stop > end:
                    break
                messages.append(self._message(view[start + _LENGTH.size : stop]))
                start = stop
        del self._buffer[:start]
        return messages

    def _message(self, body: memoryview) -> Any:
        try:
            return self._decode(body)
        except (ValueError, RecursionError) as error:  # msgspec lets bad UTF-8 through as it is
            raise ProtocolError(f"malformed frame: {error}") from error
