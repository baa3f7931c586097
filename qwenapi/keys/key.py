"""Key: whose it is, what it opens, how much it may use; the secret's hash, not the secret.

qk_<id, 8 letters and digits>_<secret, 256 bits as 43 base64url characters>
"""

import hashlib
import re
import secrets
import string
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple, get_args

from msgspec import Meta, Struct

Scope = Literal["inference", "conversations", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
STATIC_SCOPES: tuple[Scope, ...] = ("inference", "conversations", "metrics")
MAX_PRESENTED_BYTES = 256

_ID_CHARACTERS = string.ascii_lowercase + string.digits
_ID_CHARS, _SECRET_BYTES = 8, 32
_FORM = re.compile(r"qk_([A-Za-z0-9]{8})_[A-Za-z0-9_-]{43}", re.ASCII)

Count = Annotated[int, Meta(ge=0, lt=2**31)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class KeyLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """How much a key may ask for; 0: any amount. `queued`: how many wait where `concurrent` run."""

    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    concurrent: Count = 32
    queued: Count = 64


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """One key. No `models`: all of them. A lower `priority` is more urgent."""

    id: Annotated[str, Meta(pattern="^[A-Za-z0-9]{8}$")]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    tenant: Name
    scopes: tuple[Scope, ...] = ("inference", "conversations")
    limits: KeyLimits = KeyLimits()
    models: tuple[str, ...] = ()
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] = 0
    not_after: Annotated[datetime, Meta(tz=True)] | None = None
    disabled: bool = False

    @property
    def state(self) -> Literal["active", "disabled", "expired"]:
        if self.disabled:
            return "disabled"
        is_over = self.not_after is not None and datetime.now(UTC) >= self.not_after
        return "expired" if is_over else "active"

    def opens(self, scope: Scope) -> bool:
        """Return whether the key's holder may do what the scope names; an admin may do all."""
        return scope in self.scopes or "admin" in self.scopes

    def urgency(self, asked: int | None) -> int:
        """Return the priority of a request: what it asks, if that is no more urgent than the
        key's; where no keys are asked for, whatever it asks.
        """
        if self is ANYONE:
            return asked or 0
        return self.priority if asked is None else max(asked, self.priority)


class NewKey(NamedTuple):
    """A key just made: the text its holder presents, and what is kept of it."""

    text: str
    id: str
    sha256: str


def new_key() -> NewKey:
    """Return a key nobody has."""
    key_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_CHARS))
    text = f"qk_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return NewKey(text, key_id, digest(text))


def digest(presented: str) -> str:
    return hashlib.sha256(presented.encode()).hexdigest()


def id_of(presented: str) -> str:
    """Return the id that a presented key names, empty if it has not the form of a key."""
    found = _FORM.fullmatch(presented)
    return found[1] if found else ""


_UNLIMITED = KeyLimits(concurrent=0, queued=0)
# Who calls where no keys are asked for, and who presents the one key of --api-key.
ANYONE = Key("", "", "", SCOPES, _UNLIMITED)
STATIC = Key("static", "", "", STATIC_SCOPES, _UNLIMITED)
