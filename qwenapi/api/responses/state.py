"""What is kept of responses: written as they end, read by id, as history, and as items.

What is kept of one is a turn, the items of its input and its output, and beside it the body without
them. Errors are in OpenAI's words.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import orjson

from qwenapi.api.responses import render
from qwenapi.api.responses.items import REFERENCE, Item, response_of
from qwenapi.conversations import PastTurn, StoredResponse
from qwenapi.errors import BadRequest, NotFound, PreviousResponseNotFound
from qwenapi.request_context.current_request import caller
from qwenapi.request_context.services import conversations
from qwenapi.request_context.storage_errors import storage_errors

MAX_SHOWN_CHARS = 64
RUNNING = ("queued", "in_progress")
LOST = "The server process that ran this response has ended before it did. Send the request again."


def stored(body: render.Payload, items: Iterable[Item]) -> StoredResponse:
    """Return what is kept of a response, whose items of input all have ids."""
    rest = {key: value for key, value in body.items() if key != "output"}
    turn = PastTurn(_text(list(items)), _text(body["output"]), body["status"], body["created_at"])
    return StoredResponse(body["id"], body["previous_response_id"] or "", turn, _text(rest))


def body_of(response: StoredResponse) -> render.Payload:
    """Return a response as it is told; one that nobody runs any more has failed."""
    body: render.Payload = orjson.loads(response.body)
    body["output"] = orjson.loads(response.turn.assistant)
    is_lost = body["status"] in RUNNING and not response.is_running
    return render.failed(body, LOST) if is_lost else body


def input_of(response: StoredResponse) -> list[Item]:
    """Return the items of a response's own input."""
    items: list[Item] = orjson.loads(response.turn.user)
    return items


def find(response_id: str) -> StoredResponse:
    """Return a response of the caller's."""
    with errors_of(response_id):
        return conversations().responses.find(caller().tenant, response_id)


def history_of(response_id: str | None) -> list[Item]:
    """Return the items of a response and all before it, of none where there is no id."""
    if response_id is None:
        return []
    shown = response_id[:MAX_SHOWN_CHARS]
    with storage_errors(lambda: PreviousResponseNotFound(shown), param="previous_response_id"):
        turns = conversations().responses.history(caller().tenant, response_id)
    if turns[-1].finish_reason in RUNNING:
        message = f"The response '{shown}' has not ended."
        raise BadRequest(message, param="previous_response_id")
    return [item for turn in turns for text in (turn.user, turn.assistant) for item in _read(text)]


def resolved(items: Iterable[Item]) -> list[Item]:
    """Return items with those in the place of references that they are to."""
    return [_referred(item["id"]) if item["type"] == REFERENCE else item for item in items]


def errors_of(response_id: str) -> AbstractContextManager[None]:
    """Raise the store's errors as those of a request about one response."""
    shown = response_id[:MAX_SHOWN_CHARS]
    return storage_errors(lambda: NotFound(f"Response with id '{shown}' not found."), param="input")


def _referred(id_: str) -> Item:
    missing = NotFound(f"Item with id '{id_[:MAX_SHOWN_CHARS]}' not found.", param="input")
    with storage_errors(lambda: missing, param="input"):
        response = conversations().responses.find(caller().tenant, response_of(id_))
    items = [*input_of(response), *_read(response.turn.assistant)]
    found = next((item for item in items if item["id"] == id_), None)
    if found is None:
        raise missing
    return found


def _read(text: str) -> list[Item]:
    items: list[Item] = orjson.loads(text)
    return items


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()
