"""The body of `POST /v1/files`: a form in parts, whose file goes to the disk as it comes."""

import errno
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from flask import Request
from gunicorn.http.errors import ParseException
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.wsgi import get_input_stream

from qwenapi.batches.errors import NoRoom
from qwenapi.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

# What a form has besides its file; werkzeug also wants room in memory for pieces of the file.
FORM_BYTES = 512 * 1024
MAX_PARTS = 16
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Upload:
    """A form's fields, its file among them; that is gone once it is closed."""

    fields: dict[str, Any]
    file: FileStorage | None
    num_bytes: int


class _Beside:
    """A stream whose reading lets other greenlets run: a fast sender would hold up all streams."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        time.sleep(0)
        return self._stream.read(size)


def receive(incoming: Request, folder: Path, max_bytes: int) -> Upload:
    """Return the form of a request; raise an ApiError for anything else, or more. What came of a
    refused one is gone at once.
    """
    with ExitStack() as opened:
        upload = _receive(incoming, folder, max_bytes, opened)
        opened.pop_all()
        return upload


def _receive(incoming: Request, folder: Path, max_bytes: int, opened: ExitStack) -> Upload:
    if incoming.mimetype != "multipart/form-data":
        raise UnsupportedMediaType("A file comes as multipart/form-data.")
    limit = max_bytes + FORM_BYTES
    too_large = PayloadTooLarge(f"The file is larger than {max_bytes} bytes.")
    if (incoming.content_length or 0) > limit:
        raise too_large

    def open_file(**_: Any) -> Any:
        return opened.enter_context(tempfile.NamedTemporaryFile(dir=folder, suffix=".part"))

    limits: Any = {"max_form_memory_size": FORM_BYTES, "max_form_parts": MAX_PARTS}
    parser = FormDataParser(cast("Any", open_file), silent=False, **limits)
    stream: Any = _Beside(get_input_stream(incoming.environ, max_content_length=limit))
    try:
        _, form, files = parser.parse(
            stream, incoming.mimetype, incoming.content_length, incoming.mimetype_params
        )
        file = files.get("file")
        num_bytes = _size(file) if file else 0
    except RequestEntityTooLarge as error:
        raise too_large from error
    except (ClientDisconnected, ParseException, ValueError, OSError) as error:
        if getattr(error, "errno", None) in NO_ROOM:
            raise NoRoom() from error
        raise BadRequest("The form is malformed, or ended too early.", kind="json") from error
    if num_bytes > max_bytes:
        raise too_large
    fields = {name: text for name, text in form.items() if name != "file"}
    return Upload(fields | ({"file": file} if file else {}), file, num_bytes)


def _size(file: FileStorage) -> int:
    """Return the bytes of a file once all of them are written."""
    file.stream.flush()
    return file.stream.seek(0, 2)
