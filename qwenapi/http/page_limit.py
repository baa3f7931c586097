"""How many of a list one page has, as OpenAI's lists are asked for it. Pure."""

from qwenapi.errors import BadRequest


def page_limit(text: str, most: int) -> int:
    """Return the number that a query's `limit` says, 1 to `most`."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
    if not is_number or not 1 <= int(text) <= most:
        raise BadRequest(f"'limit' must be an integer from 1 to {most}.", param="limit")
    return int(text)
