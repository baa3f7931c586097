"""Pages of items."""

from collections.abc import Mapping
from operator import itemgetter

from qwenapi.api.responses.render import Payload
from qwenapi.http import paging
from qwenapi.http.paging import Ordered

MAX_LIMIT = 100


def page(items: Ordered[Payload], query: Mapping[str, str]) -> Payload:
    """Return the part of all items that a query asks for."""
    return paging.page(items, query, most=MAX_LIMIT, id_of=itemgetter("id"), body_of=dict)
