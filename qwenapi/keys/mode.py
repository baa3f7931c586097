"""Whether keys are asked for, settled once at a start, before anything listens to callers.

a key file, $CREDENTIALS_DIRECTORY/keys.json or --api-key   → keys
auth.mode = "keys" and none of them                         → refused
auth.mode = "open"                                          → open; away from loopback, a warning
nothing said                                                → open on loopback, else refused
"""

import ipaddress
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qwenapi.keys.key import MAX_PRESENTED_BYTES
from qwenapi.keys.key_file import read_keys
from qwenapi.settings.table import Settings
from workers.errors import ConfigError

CREDENTIAL = "keys.json"


def settle(settings: Settings, host: str, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings with `auth_mode` and `auth_keys` as they will be in force for an address
    listened on (empty for a Unix socket); raise ConfigError where that would be a mistake.
    """
    path = settings.auth_keys or _credential(os.environ if environ is None else environ)
    if path:
        path = os.path.abspath(os.path.expanduser(path))
        read_keys(Path(path))
    if settings.api_key:
        _check_static(settings.api_key)
    if path or settings.api_key:
        return replace(settings, auth_mode="keys", auth_keys=path)
    if settings.auth_mode == "keys":
        raise ConfigError("auth.mode is keys, but there are none: set --auth-keys or --api-key")
    if host and not ipaddress.ip_address(host).is_loopback:
        _allow_open(settings, host)
    return replace(settings, auth_mode="open")


def _credential(environ: Mapping[str, str]) -> str:
    """Return the file systemd's LoadCredential=keys.json made, if it did."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    path = os.path.join(folder, CREDENTIAL) if folder else ""
    return path if os.path.exists(path) else ""


def _check_static(key: str) -> None:
    is_sendable = key.isascii() and key.isprintable() and " " not in key
    if not is_sendable or len(key) > MAX_PRESENTED_BYTES:
        raise ConfigError(
            f"--api-key: at most {MAX_PRESENTED_BYTES} ASCII characters, no spaces: no caller could"
            " send it"
        )


def _allow_open(settings: Settings, host: str) -> None:
    if not settings.auth_mode:
        raise ConfigError(
            f"{host} is open to every machine that reaches it, and profile {settings.profile} does"
            ' not say auth.mode: set --auth-keys or --api-key, or auth.mode = "open" if that is'
            " meant"
        )
    print(
        f"qwenapi: {host} is open to every machine that reaches it: no keys are asked for",
        file=sys.stderr,
    )
