"""Pages of lists, as OpenAI's are read: the newest first, so many of them, behind one. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from qwenapi.errors import BadRequest

USUAL_LIMIT = 20
MAX_SHOWN_CHARS = 64

T = TypeVar("T")


def page(
    found: Sequence[T],
    query: Mapping[str, str],
    *,
    most: int,
    id_of: Callable[[T], str],
    body_of: Callable[[T], dict[str, Any]],
) -> dict[str, Any]:
    """Return the part of a list, the oldest first, that a query asks for by `limit`, up to `most`,
    `order` and `after`.
    """
    limit = _limit(query.get("limit", str(USUAL_LIMIT)), most)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("'order' must be asc or desc.", param="order")
    ordered = found if order == "asc" else found[::-1]
    if (after := query.get("after")) is not None:
        ids = [id_of(one) for one in ordered]
        if after not in ids:
            message = f"'after' names nothing in this list: {after[:MAX_SHOWN_CHARS]}."
            raise BadRequest(message, param="after")
        ordered = ordered[ids.index(after) + 1 :]
    shown = ordered[:limit]
    return {
        "object": "list",
        "data": [body_of(one) for one in shown],
        "first_id": id_of(shown[0]) if shown else None,
        "last_id": id_of(shown[-1]) if shown else None,
        "has_more": len(ordered) > limit,
    }


def _limit(text: str, most: int) -> int:
    """Return the number that a query's `limit` says, 1 to `most`."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
    if not is_number or not 1 <= int(text) <= most:
        raise BadRequest(f"'limit' must be an integer from 1 to {most}.", param="limit")
    return int(text)
