"""RedisBackend: conversations in a Redis that several machines share.

Each method is one script, see redis_scripts. Needs Redis 5 or newer, one primary (no cluster). What
is acknowledged is as durable as Redis is told to be: `appendonly yes`, `appendfsync always`,
`maxmemory-policy noeviction`. What is erased stays in its append-only file until that is rewritten.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from qwenapi.conversations import redis_scripts
from qwenapi.conversations.errors import (
    ConversationBusy,
    ConversationError,
    ConversationFull,
    ConversationNotFound,
    LeaseLost,
    StorageUnavailable,
    StoreFull,
)
from qwenapi.conversations.values import (
    Claim,
    Conversation,
    PastTurn,
    Step,
    StoredResponse,
    StoreLimits,
)
from workers.errors import ConfigError

PREFIX = "qwenapi:conversations"
TIMEOUT_SECONDS = 5.0
SCRIPTS = (
    *("CREATE", "ENTER", "ADVANCE", "LEAVE", "RENEW", "COMMIT"),
    *("LABEL", "RESPOND", "DELETE", "PURGE"),
)
KEYS_OF_CONVERSATION = ("meta", "turns", "lease", "line", "waits")
KEYS_OF_TENANT = ("expiries", "sizes", "total")
PAGE = 64  # turns fetched at once

ERRORS: dict[int, type[ConversationError]] = {
    redis_scripts.NOT_FOUND: ConversationNotFound,
    redis_scripts.CONVERSATION_FULL: ConversationFull,
    redis_scripts.STORE_FULL: StoreFull,
    redis_scripts.LEASE_LOST: LeaseLost,
    redis_scripts.PLACE_LOST: ConversationBusy,
}

log = logging.getLogger(__name__)


class RedisBackend:
    """A Backend on Redis. The address may hold a password and is never logged."""

    def __init__(self, url: str, limits: StoreLimits) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise ConfigError(
                "conversations in Redis need its package: pip install qwenapi[redis]"
            ) from error
        self._limits = limits
        self._error = redis.RedisError
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError as error:
            raise ConfigError("the URL of the conversations' Redis is not valid") from error
        self._scripts: dict[str, Callable[..., Any]] = {
            name: self._client.register_script(redis_scripts.PRELUDE + getattr(redis_scripts, name))
            for name in SCRIPTS
        }

    def open(self) -> None:
        with self._translated():
            self._client.ping()
            try:
                found: Any = self._client.config_get("appendonly")
            except self._error:
                return  # a hosted Redis may keep its settings to itself
        if found.get("appendonly", found.get(b"appendonly")) in ("no", b"no"):
            log.warning("this Redis has appendonly off: its crash loses stored conversations")

    def create(self, claim: Claim) -> None:
        self._run("CREATE", claim)

    def enter(self, claim: Claim) -> int:
        return self._run("ENTER", claim)

    def advance(self, claim: Claim) -> int:
        return self._run("ADVANCE", claim)

    def leave(self, claim: Claim) -> None:
        self._run("LEAVE", claim)

    def renew(self, claims: Collection[Claim]) -> set[Claim]:
        return {claim for claim in claims if self._is_lost(claim)}

    def history(self, claim: Claim) -> tuple[PastTurn, ...]:
        turns: list[PastTurn] = []
        left = self._limits.max_history_bytes
        for turn in self._newest_first(claim.conversation_id):
            left -= turn.num_bytes
            if left < 0:
                break
            turns.append(turn)
        return tuple(reversed(turns))

    def commit(
        self,
        claim: Claim,
        turn: PastTurn,
        response: StoredResponse | None = None,
        labels: str = "",
    ) -> None:
        more: tuple[Any, ...] = ("", "", "", 0)
        if response is not None:
            more = (response.id, _line(response.turn), response.body, response.num_bytes)
        num_bytes = turn.num_bytes + len(labels.encode())
        self._run("COMMIT", claim, _line(turn), num_bytes, time.time(), *more, labels)

    def find(self, tenant: str, conversation_id: str) -> Conversation:
        with self._translated(), self._client.pipeline(transaction=True) as pipe:
            pipe.hgetall(_key("meta", conversation_id))
            pipe.llen(_key("turns", conversation_id))
            meta, num_turns = pipe.execute()
        if meta.get(b"tenant") != tenant.encode():
            raise ConversationNotFound()
        created_at, used_at = float(meta[b"created_at"]), float(meta[b"used_at"])
        labels = meta.get(b"labels", b"").decode()
        return Conversation(conversation_id, created_at, used_at, num_turns, labels)

    def turns(self, tenant: str, conversation_id: str, numbers: range) -> tuple[PastTurn, ...]:
        first, last = numbers.start - 1, numbers.stop - 2
        with self._translated(), self._client.pipeline(transaction=True) as pipe:
            pipe.hget(_key("meta", conversation_id), "tenant")
            pipe.lrange(_key("turns", conversation_id), first, last)
            owner, lines = pipe.execute()
        if owner != tenant.encode():
            raise ConversationNotFound()
        return tuple(_turn(line) for line in lines)

    def label(self, tenant: str, conversation_id: str, labels: str) -> None:
        self._run("LABEL", Claim(tenant, conversation_id, ""), labels, time.time())

    def delete(self, tenant: str, conversation_id: str) -> None:
        self._run("DELETE", Claim(tenant, conversation_id, ""))

    def put_response(self, claim: Claim, response: StoredResponse, step: Step) -> bool:
        line = _line(response.turn)
        more = (response.previous_id, line, response.body, response.num_bytes, step)
        return self._run("RESPOND", claim, *more) == 1

    def response(self, tenant: str, response_id: str) -> StoredResponse:
        with self._translated(), self._client.pipeline(transaction=True) as pipe:
            pipe.hgetall(_key("meta", response_id))
            pipe.exists(_key("lease", response_id))
            meta, is_running = pipe.execute()
        if meta.get(b"tenant") != tenant.encode():
            raise ConversationNotFound()
        previous_id, body = meta[b"previous"].decode(), meta[b"body"].decode()
        return StoredResponse(
            response_id, previous_id, _turn(meta[b"turn"]), body, bool(is_running)
        )

    def line(self, tenant: str, response_id: str) -> tuple[PastTurn, ...]:
        turns: list[PastTurn] = []
        left = self._limits.max_history_bytes
        while response_id:
            with self._translated():
                found: Any = self._client.hmget(
                    _key("meta", response_id), "tenant", "previous", "turn"
                )
            if found[0] != tenant.encode():
                raise ConversationNotFound()
            turns.append(_turn(found[2]))
            left -= turns[-1].num_bytes
            if left < 0:
                raise ConversationFull()
            response_id = found[1].decode()
        return tuple(reversed(turns))

    def delete_response(self, tenant: str, response_id: str) -> None:
        self._run("DELETE", Claim(tenant, response_id, ""))

    def purge(self) -> int:
        with self._translated():
            tenants: Any = self._client.smembers(f"{PREFIX}:tenants")
        return sum(self._run("PURGE", Claim(tenant.decode(), "", "")) for tenant in tenants)

    def close(self) -> None:
        self._client.close()

    def _run(self, name: str, claim: Claim, *more: Any) -> int:
        limits = self._limits
        arguments = (
            claim.conversation_id,
            claim.tenant,
            claim.token,
            int(limits.lease_seconds * 1000),
            int(limits.ttl_seconds * 1000),
            limits.max_items,
            limits.max_tenant_bytes,
        )
        with self._translated():
            answer = int(self._scripts[name](keys=_keys(claim), args=(*arguments, *more)))
        if answer < 0:
            raise ERRORS[answer]()
        return answer

    def _is_lost(self, claim: Claim) -> bool:
        try:
            self._run("RENEW", claim)
        except LeaseLost:
            return True
        return False

    def _newest_first(self, conversation_id: str) -> Iterator[PastTurn]:
        end = -1
        while True:
            with self._translated():
                lines: Any = self._client.lrange(
                    _key("turns", conversation_id), end - PAGE + 1, end
                )
            yield from (_turn(line) for line in reversed(lines))
            if len(lines) < PAGE:
                return
            end -= PAGE

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise StorageUnavailable() from error


def _key(name: str, owner: str) -> str:
    return f"{PREFIX}:{name}:{owner}"


def _keys(claim: Claim) -> list[str]:
    return [
        *(_key(name, claim.conversation_id) for name in KEYS_OF_CONVERSATION),
        *(_key(name, claim.tenant) for name in KEYS_OF_TENANT),
        f"{PREFIX}:tenants",
    ]


def _line(turn: PastTurn) -> bytes:
    return orjson.dumps([turn.user, turn.assistant, turn.finish_reason, turn.created_at])


def _turn(line: bytes) -> PastTurn:
    return PastTurn(*orjson.loads(line))
