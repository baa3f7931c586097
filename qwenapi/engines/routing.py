"""Which engine a request goes to, by load and by what its cache may hold. Pure."""

import hashlib
from collections.abc import Sequence

from qwenapi.engines.link import EngineLink
from workers.wire.protocol import Generate

# A prefix's favourite engine is left when it has this many more tokens in flight than the least
# loaded one.
AFFINITY_SLACK_TOKENS = 8192
AFFINITY_PREFIX_TOKENS = 256


def candidates(links: Sequence[EngineLink], request: Generate) -> list[EngineLink]:
    """Return the engines to try, best first: of a limited group one, else by prefix and load."""
    if len(links) < 2:
        return list(links)
    if request.max_running:
        return [max(links, key=lambda link: _rank(request.group, link))]
    prefix = repr(request.prompt_ids[:AFFINITY_PREFIX_TOKENS])
    by_load = sorted(links, key=lambda link: link.num_tokens_in_flight)
    favourite = max(links, key=lambda link: _rank(prefix, link))
    if favourite.num_tokens_in_flight - by_load[0].num_tokens_in_flight > AFFINITY_SLACK_TOKENS:
        return by_load
    return [favourite, *(link for link in by_load if link is not favourite)]


def _rank(key: str, link: EngineLink) -> bytes:
    """Rendezvous hashing: a key's highest engine stays the same when others come and go."""
    return hashlib.blake2b(f"{link.hello.engine_index} {key}".encode(), digest_size=8).digest()
