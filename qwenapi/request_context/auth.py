"""Who is let in: host, API key, scopes and rate limit of each request; rate-limit headers out.

Everybody is where no keys are asked for, else the holder of a key whose scopes name what is asked.
Nothing is answered without a key but what PUBLIC lists, wrong addresses and methods included; a
route whose scope nobody has written down needs `admin`. Also chooses the profile of an address,
and with it the error dialect of any refusal. The keys themselves are in keys/.
"""

from functools import cache

from flask import Flask, Response, g, request
from werkzeug.datastructures import Headers

from qwenapi.errors import Forbidden, Unauthorized, UnknownHost
from qwenapi.keys import ANYONE, Key, RateLimit
from qwenapi.keys.key import MAX_PRESENTED_BYTES, Scope
from qwenapi.request_context.current_request import use_profile
from qwenapi.request_context.inner_request import KEY_ID, inner_key
from qwenapi.request_context.services import services

# Rules as the routing has them, so that no spelling of an address passes for another.
PUBLIC = frozenset(
    {"/", "/livez", "/readyz", "/health", "/version", "/openapi.json", "/ui", "/docs"}
)
PUBLIC_FOLDERS = ("/ui/", "/docs/")
PROBES = frozenset({"/livez", "/readyz"})  # asked by address, whatever the host is called
# The longest beginning of a rule decides.
SCOPES: dict[str, Scope] = {
    "/v1/": "inference",
    "/chat/": "inference",
    "/api/chat/": "inference",
    "/generate": "inference",
    "/tokenize": "inference",  # and /tokenizer_info
    "/detokenize": "inference",
    "/rerank": "inference",
    "/v2/rerank": "inference",
    "/score": "inference",
    "/v1/code/conversations/": "conversations",
    "/v1/conversations": "conversations",
    "/v1/responses/": "conversations",  # what is kept of them; to ask for one is inference
    "/v1/responses/input_tokens": "inference",
    "/metrics": "metrics",
    "/api/v1/metrics": "metrics",
    "/v1/v1/metrics": "metrics",
    "/stats": "metrics",
    "/load": "metrics",
    "/ui/status.json": "metrics",
}


def register(app: Flask) -> None:
    app.before_request(_admit)
    app.after_request(_tell_limits)


def is_public(rule: str) -> bool:
    """Return whether a route is answered without a key."""
    return rule in PUBLIC or (rule.startswith(PUBLIC_FOLDERS) and rule not in SCOPES)


@cache
def scope_of(rule: str) -> Scope:
    """Return what a key must have for a route."""
    known = [beginning for beginning in SCOPES if rule.startswith(beginning)]
    return SCOPES[max(known, key=len)] if known else "admin"


def presented_key(headers: Headers) -> str:
    """Return the key that a request presents, in one header or the same in both; empty for none,
    different ones, or what can be no key.
    """
    found = [value.strip() for value in headers.getlist("X-Api-Key")]
    for value in headers.getlist("Authorization"):
        scheme, _, credentials = value.partition(" ")
        found.append(credentials.strip() if scheme.lower() == "bearer" else "")
    key = found[0] if len(set(found)) == 1 else ""
    return key if key.isascii() and len(key) <= MAX_PRESENTED_BYTES else ""


def _admit() -> None:
    rule = request.url_rule.rule if request.url_rule else ""
    g.key = ANYONE
    inner_id = request.environ.get(KEY_ID)
    _choose_profile()
    if rule not in PROBES and inner_id is None:
        _check_host()
    if inner_id is not None:
        g.key = _known(inner_key(services().keys, inner_id))
    elif not services().keys.is_open and not is_public(rule):
        g.key = _known(services().keys.find(presented_key(request.headers)))
    if g.key.id:
        g.log.add(key_id=g.key.id)
        if rule and not g.key.opens(scope := scope_of(rule)):
            raise Forbidden(scope)
    shared = services()
    is_inner = inner_id is not None
    g.rate_limit = RateLimit(shared.usage, g.key, shared.key_queues, gives_way=is_inner)


def _known(key: Key | None) -> Key:
    if key is None:
        raise Unauthorized
    return key


def _check_host() -> None:
    """Refuse a name that is not ours: a foreign page may have made it point here."""
    trusted = services().settings.trusted_hosts
    host = request.headers.get("Host", "").lower()
    name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    if trusted and name.rstrip(".") not in {entry.lower() for entry in trusted}:
        raise UnknownHost


def _choose_profile() -> None:
    """Let a refusal be in the words of those who call at this address; OpenAI's go by model."""
    profile = services().profiles.of_interface(request.blueprint)
    if request.blueprint != "openai" and profile is not None:
        use_profile(profile)


def _tell_limits(response: Response) -> Response:
    rate_limit: RateLimit | None = g.get("rate_limit")
    if rate_limit is not None:
        response.headers.update(rate_limit.headers)
    return response
