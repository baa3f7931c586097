"""FastChunks: gunicorn's reader of chunked bodies, quick also with a body of very small chunks.

gunicorn's copies what it has received once for each chunk, some 14 µs for one of a byte: two
megabytes sent in such chunks keep a process busy for six seconds. What lies whole in the bytes
received is taken here in a fifth of that; all else, extensions, trailers and whatever is
malformed, is gunicorn's to judge.
"""

import re
from collections.abc import Iterator
from typing import Any

from gunicorn.http.body import Body, ChunkedReader
from gunicorn.http.errors import ChunkMissingTerminator, NoMoreData

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")


class FastChunks(ChunkedReader):
    """In a request's body in place of gunicorn's reader, before anything was read."""

    def parse_chunked(self, unreader: Any) -> Iterator[bytes]:
        """Yield the data of the chunks, in pieces of any size."""
        rest = b""
        while True:
            whole, rest = whole_chunks(rest)
            yield whole
            size, rest = self.parse_chunk_size(unreader, data=rest)
            if size == 0:
                return
            while size > len(rest):
                size -= len(rest)
                yield rest
                rest = _more(unreader, size)
            yield rest[:size]
            rest = rest[size:]
            while len(rest) < 2:
                rest += _more(unreader)
            if rest[:2] != b"\r\n":
                raise ChunkMissingTerminator(rest[:2])
            rest = rest[2:]


def install(req: Any) -> None:
    """Let a request's body in chunks be read quickly."""
    if req.body is not None and type(req.body.reader) is ChunkedReader:
        req.body = Body(FastChunks(req, req.unreader))


def whole_chunks(data: bytes) -> tuple[bytes, bytes]:
    """Return what the chunks hold that lie whole at the beginning of `data`, and what follows."""
    pieces: list[bytes] = []
    at = 0
    while found := _SIZE.match(data, at):
        begin = found.end()
        end = begin + int(found[1], 16)
        if end == begin or data[end : end + 2] != b"\r\n":  # the last one, or not all of it is here
            break
        pieces.append(data[begin:end])
        at = end + 2
    return b"".join(pieces), data[at:]


def _more(unreader: Any, wanted: int | None = None) -> bytes:
    data: bytes = unreader.read(None, read_ahead=wanted)
    if not data:
        raise NoMoreData()
    return data
