"""Pages of items, as OpenAI's lists are read: newest first, so many, after one. Pure."""

from collections.abc import Mapping, Sequence

from qwenapi.api.responses import render
from qwenapi.errors import BadRequest
from qwenapi.http.page_limit import page_limit

MAX_LIMIT, USUAL_LIMIT = 100, 20


def page(items: Sequence[render.Payload], query: Mapping[str, str]) -> render.Payload:
    """Return the part of all items that a query asks for by `limit`, `order` and `after`."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("'order' must be asc or desc.", param="order")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after := query.get("after"):
        ids = [item["id"] for item in ordered]
        if after not in ids:
            raise BadRequest(f"'after' names no item of these: {after[:64]}.", param="after")
        ordered = ordered[ids.index(after) + 1 :]
    limit = page_limit(query.get("limit", str(USUAL_LIMIT)), MAX_LIMIT)
    return render.item_list(ordered[:limit], has_more=len(ordered) > limit)
