"""Which engine a request goes to, by load and by what its cache may hold. Pure."""

import hashlib
from collections.abc import Sequence
from functools import cache

from qwenapi.engines.link import EngineLink
from workers.wire.protocol import Generate

# A prefix's favourite engine is left when it has this many more tokens in flight than the least
# loaded one.
AFFINITY_SLACK_TOKENS = 8192
AFFINITY_PREFIX_TOKENS = 256
# Any odd number whose bits are mixed: Knuth's, the golden ratio's.
_ODD, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def candidates(links: Sequence[EngineLink], request: Generate) -> list[EngineLink]:
    """Return the engines to try, best first: of a limited group one, else by prefix and load."""
    if len(links) < 2:
        return list(links)
    if request.max_running:
        return [max(links, key=lambda link: _rank(request.group, link))]
    prefix = repr(request.prompt_ids[:AFFINITY_PREFIX_TOKENS])
    by_load = sorted(links, key=lambda link: link.num_tokens_in_flight)
    number = _number(prefix)
    favourite = max(links, key=lambda link: _score(number, link.hello.engine_index))
    if favourite.num_tokens_in_flight - by_load[0].num_tokens_in_flight > AFFINITY_SLACK_TOKENS:
        return by_load
    return [favourite, *(link for link in by_load if link is not favourite)]


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
