"""Router: which engine a request goes to, by what its cache may hold and by load.

A prompt that goes on with one of lately goes where that went: a conversation's next turn. Of others
the first tokens have a favourite, by rendezvous hashing, which every process finds alike. Either is
left for the least loaded engine where it has too much more to do. Load is what an engine has in
flight from here, and those tokens again that are beyond its capacity, the slower the heavier.
Refuses to know what is in engines' caches.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache

from qwenapi.engines.link import EngineLink
from workers.wire.protocol import Generate

# An engine is left when its load is so many tokens above that of the least loaded one.
AFFINITY_SLACK_TOKENS = 8192
AFFINITY_PREFIX_TOKENS = 256
# Prompts are told apart every so many tokens, so often; and so many of them are remembered.
_STEP_TOKENS, _MOST_STEPS = 128, 64
_MOST_REMEMBERED = 1 << 16
# Any odd number whose bits are mixed: Knuth's, the golden ratio's.
_ODD, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


class Router:
    """Knows where this process sent prompts lately."""

    def __init__(self) -> None:
        # The engine that each prompt went to, by its longest prefix in whole steps; oldest first.
        self._places: OrderedDict[bytes, int] = OrderedDict()

    def candidates(self, links: Sequence[EngineLink], request: Generate) -> list[EngineLink]:
        """Return the engines to try, best first: of a limited group one, else by prefix and load.

        The first is taken to be the one that the request goes to.
        """
        if len(links) < 2:
            return list(links)
        if request.max_running:
            return [max(links, key=lambda link: _rank(request.group, link))]
        weight = request.weight
        by_load = sorted(links, key=lambda link: _load(link, weight))
        least, keys = by_load[0], _keys(request)
        favourite = self._last_place(keys, links) or _favourite(links, request)
        if _load(favourite, weight) - _load(least, weight) > AFFINITY_SLACK_TOKENS:
            favourite = least
        if keys:
            self._remember(keys[-1], favourite.hello.engine_index)
        return [favourite, *(link for link in by_load if link is not favourite)]

    def _last_place(self, keys: Sequence[bytes], links: Sequence[EngineLink]) -> EngineLink | None:
        """Return where the longest known prefix went of those that went to one of `links`."""
        there = {link.hello.engine_index: link for link in links}
        found = (there.get(self._places.get(key, -1)) for key in reversed(keys))
        return next((link for link in found if link is not None), None)

    def _remember(self, key: bytes, engine_index: int) -> None:
        self._places[key] = engine_index
        self._places.move_to_end(key)
        if len(self._places) > _MOST_REMEMBERED:
            self._places.popitem(last=False)


def _load(link: EngineLink, weight: int) -> float:
    """Return an engine's load with a request of this weight, in tokens."""
    num_tokens = link.num_tokens_in_flight + weight
    capacity, slowness = link.capacity
    return num_tokens + max(0.0, num_tokens - capacity) * slowness


def _keys(request: Generate) -> list[bytes]:
    """Return what names the prompt's prefixes of one step, two steps and so on."""
    ids = array("I", request.prompt_ids[: _STEP_TOKENS * _MOST_STEPS])
    digest, keys = hashlib.blake2b(request.cache_salt.encode(), digest_size=8), []
    for stop in range(_STEP_TOKENS, len(ids) + 1, _STEP_TOKENS):
        digest.update(ids[stop - _STEP_TOKENS : stop])
        keys.append(digest.digest())
    return keys


def _favourite(links: Sequence[EngineLink], request: Generate) -> EngineLink:
    number = _number(repr(request.prompt_ids[:AFFINITY_PREFIX_TOKENS]))
    return max(links, key=lambda link: _score(number, link.hello.engine_index))


def _rank(key: str, link: EngineLink) -> bytes:
    """Rendezvous hashing: a key's highest engine stays the same when others come and go."""
    return hashlib.blake2b(f"{link.hello.engine_index} {key}".encode(), digest_size=8).digest()


def _score(number: int, engine_index: int) -> int:
    """Return the same for a prefix's number, at a fifth of the cost."""
    return (number ^ _salt(engine_index)) * _ODD & _MASK


@cache
def _salt(engine_index: int) -> int:
    return _number(f"engine {engine_index}")


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
