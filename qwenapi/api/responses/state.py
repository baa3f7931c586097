"""What is kept of responses: written as they end, read by id, as history, and as items.

What is kept of one is a turn, the items of its input and its output, and beside it the body without
them. An output with logprobs is whole in the body, and without them in the turn. Errors are in
OpenAI's words.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
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
MAX_REFERENCES = 1000  # of one request
TOO_LARGE = "The items that 'input' refers to are more than a prompt can be."
RUNNING = ("queued", "in_progress")
LOST = "The server process that ran this response has ended before it did. Send the request again."


def stored(body: render.Payload, items: Iterable[Item]) -> StoredResponse:
    """Return what is kept of a response, whose items of input all have ids."""
    bare = [_without_logprobs(item) for item in body["output"]]
    is_bare = bare == body["output"]
    rest = {key: value for key, value in body.items() if key != "output" or not is_bare}
    turn = PastTurn(_text(list(items)), _text(bare), body["status"], body["created_at"])
    return StoredResponse(body["id"], body["previous_response_id"] or "", turn, _text(rest))


def body_of(response: StoredResponse) -> render.Payload:
    """Return a response as it is told; one that nobody runs any more has failed."""
    body: render.Payload = orjson.loads(response.body)
    if "output" not in body:
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
        how = "has not ended" if find(response_id).is_running else "has failed"
        raise BadRequest(f"The response '{shown}' {how}.", param="previous_response_id")
    return [item for turn in turns for text in (turn.user, turn.assistant) for item in _read(text)]


def resolved(items: Iterable[Item]) -> list[Item]:
    """Return items with those in the place of references that they are to."""
    items = list(items)
    ids = [item["id"] for item in items if item["type"] == REFERENCE]
    if len(ids) > MAX_REFERENCES:
        message = f"'input' refers to more than {MAX_REFERENCES} items."
        raise BadRequest(message, param="input")
    found = _referred(Counter(ids))
    return [found[item["id"]] if item["type"] == REFERENCE else item for item in items]


def errors_of(response_id: str) -> AbstractContextManager[None]:
    """Raise the store's errors as those of a request about one response."""
    shown = response_id[:MAX_SHOWN_CHARS]
    return storage_errors(lambda: NotFound(f"Response with id '{shown}' not found."), param="input")


def _referred(counts: Mapping[str, int]) -> dict[str, Item]:
    """Return the items of these ids, referred to so often: together no more than a history."""
    store, found = conversations().responses, dict[str, Item]()
    left = store.max_history_bytes
    first_of: dict[str, str] = {}
    for id_ in counts:
        first_of.setdefault(response_of(id_), id_)
    for response_id, first in first_of.items():
        with storage_errors(partial(_no_item, first), param="input"):
            response = store.find(caller().tenant, response_id)
        left -= response.turn.num_bytes
        if left < 0:
            raise BadRequest(TOO_LARGE, param="input")
        for item in [*input_of(response), *_read(response.turn.assistant)]:
            id_ = item["id"]
            if id_ in counts and id_ not in found and response_of(id_) == response_id:
                found[id_] = item
                left -= (counts[id_] - 1) * len(orjson.dumps(item))
    for id_ in counts:
        if id_ not in found:
            raise _no_item(id_)
    if left < 0:
        raise BadRequest(TOO_LARGE, param="input")
    return found


def _no_item(id_: str) -> NotFound:
    return NotFound(f"Item with id '{id_[:MAX_SHOWN_CHARS]}' not found.", param="input")


def _without_logprobs(item: Item) -> Item:
    if item["type"] != "message":
        return item
    return item | {"content": [part | {"logprobs": []} for part in item["content"]]}


def _read(text: str) -> list[Item]:
    items: list[Item] = orjson.loads(text)
    return items


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()
