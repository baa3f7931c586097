"""`qwenapi keys`: add keys to a file, list them, disable one; `add` prints a secret, once."""

import argparse
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from qwenapi.keys.key import SCOPES, Key, KeyLimits, new_key
from qwenapi.keys.key_file import edited, read_keys
from workers.errors import ConfigError, ExitCode

FILE_VARIABLE = "QWENAPI_AUTH_KEYS"
_DAYS = re.compile(r"([1-9][0-9]{0,4})d")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the command its own commands and their flags."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    adding = _command(commands, "add", "make a key and print it, once")
    _add_key_flags(adding)
    adding.set_defaults(act=add)
    _command(commands, "list", "list the keys, without secrets").set_defaults(act=show)
    disabling = _command(commands, "disable", "refuse a key from now on")
    disabling.add_argument("id", metavar="ID", help="the key's id, as list shows it")
    disabling.set_defaults(act=disable)


def main(parsed: argparse.Namespace) -> int:
    """Do what was asked with the file it names."""
    path = parsed.file or os.environ.get(FILE_VARIABLE)
    if not path:
        raise ConfigError(f"which file of keys? set --file or {FILE_VARIABLE}")
    parsed.act(Path(path).expanduser(), parsed)
    return ExitCode.OK


def add(path: Path, parsed: argparse.Namespace) -> None:
    """Add a key; only the key itself goes to stdout."""
    with edited(path) as keys:
        fresh = new_key()
        while any(key.id == fresh.id for key in keys):
            fresh = new_key()
        keys.append(_checked(_key(fresh.id, fresh.sha256, parsed)))
    print(fresh.text)
    print(f"qwenapi: key {fresh.id} is in {path}; it is not shown again", file=sys.stderr)


def show(path: Path, parsed: argparse.Namespace) -> None:
    """Print one line for each key."""
    print("id        state     tenant            scopes, limits, models")
    for key in read_keys(path):
        limits = " ".join(f"{name}={value}" for name, value in _limits(key).items())
        ends = f" until={key.not_after.isoformat()}" if key.not_after else ""
        models = f" models={','.join(key.models)}" if key.models else ""
        priority = f" priority={key.priority}" if key.priority else ""
        scopes = ",".join(key.scopes)
        print(
            f"{key.id}  {key.state:8}  {key.tenant:16}  {scopes} {limits}{models}{priority}{ends}"
        )


def disable(path: Path, parsed: argparse.Namespace) -> None:
    """Disable a key; requests under way go on."""
    with edited(path) as keys:
        for i, key in enumerate(keys):
            if key.id == parsed.id:
                keys[i] = msgspec.structs.replace(key, disabled=True)
                break
        else:
            raise ConfigError(f"{path}: there is no key {parsed.id!r}")
    print(f"qwenapi: key {parsed.id} is disabled", file=sys.stderr)


def expiry(text: str, now: datetime | None = None) -> datetime:
    """Return the moment `90d` from now, or that of an ISO date, UTC where it names no zone."""
    if days := _DAYS.fullmatch(text):
        return ((now or datetime.now(UTC)) + timedelta(days=int(days[1]))).replace(microsecond=0)
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, help: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help)
    command.add_argument(
        "--file", default="", metavar="FILE", help=f"the file of keys; else {FILE_VARIABLE}"
    )
    return command


def _add_key_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", required=True, metavar="NAME", help="whose key it is")
    parser.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        dest="scopes",
        help="what it opens, several times (default: inference and conversations)",
    )
    limits = {"rpm": "requests a minute", "tpm": "tokens a minute, prompts and answers"}
    limits |= {
        "concurrent": "requests that run at once, whatever their n",
        "queued": "requests that wait to run",
    }
    for name, help in limits.items():
        default = {"concurrent": KeyLimits().concurrent, "queued": KeyLimits().queued}.get(name, 0)
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N",
            help=f"{help}; 0: any (default: {default})" if name != "queued" else
            f"{help} (default: {default})",
        )  # fmt: skip
    parser.add_argument(
        "--model", action="append", default=[], dest="models", metavar="NAME",
        help="a model it may ask for, several times (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--priority", type=int, default=0, metavar="N", help="lower is more urgent (default: 0)"
    )
    parser.add_argument(
        "--expires", type=expiry, metavar="WHEN", help="a date, or 90d for days from now"
    )


def _key(key_id: str, sha256: str, parsed: argparse.Namespace) -> Key:
    limits = KeyLimits(parsed.rpm, parsed.tpm, parsed.concurrent, parsed.queued)
    default: Key = Key(key_id, sha256, parsed.tenant)
    return msgspec.structs.replace(
        default,
        scopes=tuple(parsed.scopes or default.scopes),
        limits=limits,
        models=tuple(parsed.models),
        priority=parsed.priority,
        not_after=parsed.expires,
    )


def _checked(key: Key) -> Key:
    """Return the key as its file will give it back, or raise ConfigError."""
    try:
        return msgspec.json.decode(msgspec.json.encode(key), type=Key)
    except msgspec.ValidationError as error:
        raise ConfigError(f"this cannot be a key: {error}") from error


def _limits(key: Key) -> dict[str, int]:
    """Return the limits by the names of their flags."""
    limits = key.limits
    return {
        "rpm": limits.requests_per_minute,
        "tpm": limits.tokens_per_minute,
        "concurrent": limits.concurrent,
        "queued": limits.queued,
    }
