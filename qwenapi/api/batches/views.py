"""Views of `/v1/files` and `/v1/batches`: each tenant's own."""

import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from flask import Blueprint, Response, current_app, request
from werkzeug.exceptions import HTTPException

from qwenapi.api.batches import render
from qwenapi.api.batches.schemas import (
    BatchRequest,
    BatchSchema,
    FileRequest,
    FileSchema,
)
from qwenapi.api.batches.upload import receive
from qwenapi.batches.errors import UnknownObject
from qwenapi.batches.store import BatchStore
from qwenapi.batches.values import RequestBatch, StoredFile, new_id
from qwenapi.errors import BadRequest
from qwenapi.http.body import accepts
from qwenapi.http.paging import in_order, page
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import (
    caller,
    count_request,
    load_body,
    use_profile,
)
from qwenapi.request_context.services import services

blueprint = Blueprint("batches", __name__)

PIECE_BYTES = 64 * 1024
MAX_FILENAME_CHARS = 255
MAX_PAGE = 10_000
# Each answers one body with one body, and keeps nothing but what it was told.
ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/rerank",
    "/v1/responses",
    "/v1/score",
)

T = TypeVar("T", StoredFile, RequestBatch)


@blueprint.before_request
def _begin() -> None:
    """Answer in OpenAI's own words where they are spoken, and count what changes something."""
    plain = (profile for profile in services().profiles if profile.as_openai)
    if (profile := next(plain, None)) is not None:
        use_profile(profile)
    if request.method == "POST":
        count_request()


@blueprint.post("/v1/files")
def upload() -> Response:
    """Take in a file."""
    store, limit = _store(), services().settings.batches_max_file_bytes
    received = receive(request, store.uploads, limit)
    ask: FileRequest = load_body(FileSchema(), received.fields)
    assert received.file is not None  # or the schema has refused
    with received.file.stream:
        if not received.num_bytes:
            raise BadRequest("The file is empty.", param="file")
        file = StoredFile(
            id=new_id("file-"),
            tenant=caller().tenant,
            filename=Path(received.file.filename or "file").name[:MAX_FILENAME_CHARS],
            purpose=ask.purpose,
            num_bytes=received.num_bytes,
            created_at=int(time.time()),
        )
        store.add_file(file, received.file.stream.name)
    return json_response(render.file_body(file))


@blueprint.get("/v1/files")
def files() -> Response:
    wanted = request.args.get("purpose")
    found = [file for file in _store().files(caller().tenant) if wanted in (None, file.purpose)]
    return _page(found, render.file_body)


@blueprint.get("/v1/files/<file_id>")
def file(file_id: str) -> Response:
    return json_response(render.file_body(_store().file(caller().tenant, file_id)))


@blueprint.delete("/v1/files/<file_id>")
def delete_file(file_id: str) -> Response:
    _store().delete_file(caller().tenant, file_id)
    return json_response(render.deleted_body(file_id))


@blueprint.get("/v1/files/<file_id>/content")
def content(file_id: str) -> Response:
    found = _store().file(caller().tenant, file_id)
    try:
        stream = _store().path(file_id).open("rb")
    except FileNotFoundError as error:
        raise UnknownObject() from error

    def pieces() -> Iterator[bytes]:
        with stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece

    response = Response(pieces(), mimetype="application/octet-stream")
    response.content_length = found.num_bytes
    response.call_on_close(stream.close)
    return response


@blueprint.post("/v1/batches")
@accepts(BatchSchema, load=load_body)
def create(ask: BatchRequest) -> Response:
    """Begin a batch; some process takes it up within a second or two."""
    _check_endpoint(ask.endpoint)
    batch = RequestBatch(
        id=new_id("batch_"),
        tenant=caller().tenant,
        key_id=caller().id,
        endpoint=ask.endpoint,
        input_file_id=ask.input_file_id,
        output_file_id=new_id("file-"),
        error_file_id=new_id("file-"),
        created_at=int(time.time()),
        metadata=ask.metadata,
    )
    try:
        _store().create(batch)
    except UnknownObject as error:
        message = "'input_file_id' names no file."
        raise BadRequest(message, param="input_file_id") from error
    return json_response(render.batch_body(batch))


@blueprint.get("/v1/batches")
def batches() -> Response:
    return _page(_store().batches(caller().tenant), render.batch_body)


@blueprint.get("/v1/batches/<batch_id>")
def batch(batch_id: str) -> Response:
    return json_response(render.batch_body(_store().batch(caller().tenant, batch_id)))


@blueprint.post("/v1/batches/<batch_id>/cancel")
def cancel(batch_id: str) -> Response:
    """Ask for an end: no line is begun any more, and those under way are the last."""

    def change(batch: RequestBatch) -> RequestBatch:
        if batch.status in ("validating", "in_progress"):
            return replace(batch, status="cancelling")
        if batch.status in ("cancelling", "cancelled"):
            return batch
        raise BadRequest(f"The batch is {batch.status}, and cannot be cancelled any more.")

    return json_response(render.batch_body(_store().update(caller().tenant, batch_id, change)))


def _check_endpoint(endpoint: str) -> None:
    """Refuse an address that a line cannot have, or that this server has not."""
    try:
        current_app.url_map.bind("").match(endpoint, "POST")
        is_served = endpoint in ENDPOINTS
    except HTTPException:
        is_served = False
    if not is_served:
        message = f"'endpoint' must be one of {', '.join(ENDPOINTS)} that this server has."
        raise BadRequest(message, param="endpoint")


def _page(found: Sequence[T], body_of: Callable[[T], dict[str, Any]]) -> Response:
    id_of = operator.attrgetter("id")
    body = page(in_order(found), request.args, most=MAX_PAGE, id_of=id_of, body_of=body_of)
    return json_response(body)


def _store() -> BatchStore:
    store = services().batches
    if store is None:
        raise BadRequest(
            "This server keeps no files: start it with --batches-max-file-bytes above 0."
        )
    return store
