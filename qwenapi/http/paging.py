"""Pages of lists, as OpenAI's are read: the newest first, so many of them, behind one. Pure.

A list is read only as far as a page needs it, and never whole.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from qwenapi.errors import BadRequest

USUAL_LIMIT = 20
MAX_SHOWN_CHARS = 64

T = TypeVar("T")
# A list that can be begun at either end: whether with the newest.
Ordered = Callable[[bool], Iterable[T]]


def in_order(found: Sequence[T]) -> Ordered[T]:
    """Return a list, the oldest first, so that a page can be made of it."""
    return lambda newest_first: reversed(found) if newest_first else found


def page(
    found: Ordered[T],
    query: Mapping[str, str],
    *,
    most: int,
    id_of: Callable[[T], str],
    body_of: Callable[[T], dict[str, Any]],
) -> dict[str, Any]:
    """Return the part of a list that a query asks for by `limit`, up to `most`, `order` and
    `after`.
    """
    limit = _limit(query.get("limit", str(USUAL_LIMIT)), most)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("'order' must be asc or desc.", param="order")
    ordered = iter(found(order == "desc"))
    if (after := query.get("after")) is not None:
        _pass_over(ordered, after, id_of)
    shown = list(islice(ordered, limit))
    return {
        "object": "list",
        "data": [body_of(one) for one in shown],
        "first_id": id_of(shown[0]) if shown else None,
        "last_id": id_of(shown[-1]) if shown else None,
        "has_more": any(True for _ in islice(ordered, 1)),
    }


def _pass_over(ordered: Iterator[T], after: str, id_of: Callable[[T], str]) -> None:
    """Go on behind the one of this id."""
    if not any(id_of(one) == after for one in ordered):
        message = f"'after' names nothing in this list: {after[:MAX_SHOWN_CHARS]}."
        raise BadRequest(message, param="after")


def _limit(text: str, most: int) -> int:
    """Return the number that a query's `limit` says, 1 to `most`."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
    if not is_number or not 1 <= int(text) <= most:
        raise BadRequest(f"'limit' must be an integer from 1 to {most}.", param="limit")
    return int(text)
