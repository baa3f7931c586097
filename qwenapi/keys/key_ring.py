"""KeyRing: the keys in force, of --api-key and of a file that is read anew when it changes.

A file that cannot be read, or is no longer there, leaves the last keys in force and one line in the
log. Which of the reasons a key is refused for, nobody is told.
"""

import hmac
import logging
import time
from pathlib import Path

from qwenapi.keys.key import ANYONE, STATIC, Key, digest, id_of
from qwenapi.keys.key_file import read_keys
from workers.errors import ConfigError

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
# What an unknown key is compared with, so that this takes as long as for a known one.
_NOBODYS = digest("")


class KeyRing:
    """Without a file or a static key it is open: nobody is asked for a key."""

    def __init__(self, path: Path | None = None, static: str = "") -> None:
        self._path = path
        self._static = digest(static) if static else ""
        self._keys: dict[str, Key] = {}
        self._seen: tuple[int, ...] = ()
        self._complained: tuple[int, ...] = ()
        self._look_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._path is None and not self._static

    def find(self, presented: str) -> Key | None:
        """Return the active key that was presented, or None."""
        self._refresh()
        key, given = self._keys.get(id_of(presented)), digest(presented)
        is_static = hmac.compare_digest(given, self._static or _NOBODYS)
        is_key = hmac.compare_digest(given, key.sha256 if key else _NOBODYS)
        if is_static and self._static:
            return STATIC
        return key if key and is_key and key.state == "active" else None

    def in_force(self, key_id: str) -> Key | None:
        """Return the active key of an id, for what its holder asked earlier; None if it is gone."""
        if self.is_open:
            return ANYONE if key_id == ANYONE.id else None
        if key_id == STATIC.id:
            return STATIC if self._static else None
        self._refresh()
        key = self._keys.get(key_id)
        return key if key and key.state == "active" else None

    @property
    def shared_rate(self) -> int:
        """Return the requests a minute that every key is limited to, 0 if they differ or are not.

        No request waits for it: the figure is shown to anybody, key or none.
        """
        self._refresh()
        rates = {
            key.limits.requests_per_minute for key in self._keys.values() if key.state == "active"
        }
        return rates.pop() if len(rates) == 1 and not self._static else 0

    def _refresh(self) -> None:
        now = time.monotonic()
        if self._path is None or now < self._look_at:
            return
        self._look_at = now + POLL_SECONDS
        seen = _identity(self._path)
        if seen == self._seen:
            return
        try:
            self._keys = {key.id: key for key in read_keys(self._path)}
        except ConfigError as error:  # looked at again: what stood in the way may pass
            if seen != self._complained:
                log.warning("the keys stay as they were: %s", error)
            self._complained = seen
        else:
            self._seen = seen
            log.info("%s: %d keys in force", self._path.name, len(self._keys))


def _identity(path: Path) -> tuple[int, ...]:
    """Return what differs once a file was replaced or written, empty for none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode)
