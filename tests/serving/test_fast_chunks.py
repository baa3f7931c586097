"""The quick reader of chunks says what gunicorn's says, whatever comes and however it is cut."""

import time

import pytest
from gunicorn.http.body import Body, ChunkedReader
from gunicorn.http.errors import ParseException
from gunicorn.http.unreader import IterUnreader
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenapi.serving.fast_chunks import FastChunks, whole_chunks


class Head:
    """What the readers ask of a request."""

    limit_request_field_size = 8190
    max_buffer_headers = 8190 * 4

    def parse_headers(self, data, from_trailer=False):
        if b":" not in data:
            raise ParseException
        return [data]


def read(kind, raw, cuts, step):
    """Return a body, how its reading ended, and what is left for the next request."""
    unreader = IterUnreader(raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True))
    body = Body(kind(Head(), unreader))
    read = b""
    try:
        while piece := body.read(step):
            read += piece
    except (ParseException, OSError) as error:
        return type(error), body.failed
    return read, unreader.read()


chunk = st.builds(
    lambda data, extension: b"%x%b\r\n%b\r\n" % (len(data), extension, data),
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"", b"", b"", b";a=b", b' ; q="x"', b";;", b" "]),
)
WHOLE = [b"0\r\n\r\n", b"000\r\n\r\nGET", b"0\r\nX: 1\r\n\r\nrest", b"0\r\nbad\r\n\r\n"]
BROKEN = [b"", b"0", b"0\r\n", b"zz\r\n", b"5\r\nab", b"1\r\naXX", b"\r\n", b"-1\r\n"]
ending = st.sampled_from(WHOLE + BROKEN)


@settings(max_examples=500, deadline=None)
@given(st.lists(chunk, max_size=12), ending, st.data())
def test_both_readers_agree(parts, end, data):
    raw = b"".join(parts) + end
    places = st.integers(1, max(1, len(raw) - 1))
    cuts = sorted(set(data.draw(st.lists(places, max_size=6)))) if len(raw) > 1 else []
    step = data.draw(st.sampled_from([1, 7, 4096]))
    assert read(FastChunks, raw, cuts, step) == read(ChunkedReader, raw, cuts, step)


@pytest.mark.parametrize(
    ("data", "whole", "rest"),
    [
        (b"", b"", b""),
        (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc", b"0\r\n\r\n"),
        (b"1\r\na\r\n2\r\nb", b"a", b"2\r\nb"),
        (b"1\r\naXX", b"", b"1\r\naXX"),
        (b"1;x\r\na\r\n", b"", b"1;x\r\na\r\n"),
        (b"fffffffff\r\n", b"", b"fffffffff\r\n"),
    ],
)
def test_only_what_lies_whole_at_the_beginning_is_taken(data, whole, rest):
    assert whole_chunks(data) == (whole, rest)


def test_single_bytes_are_read_several_times_as_fast():
    raw = b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"
    cuts = list(range(8192, len(raw), 8192))

    def seconds(kind):
        started = time.process_time()
        assert read(kind, raw, cuts, 4096)[0] == b"x" * 100_000
        return time.process_time() - started

    assert min(seconds(FastChunks) for _ in range(3)) < seconds(ChunkedReader) / 2
