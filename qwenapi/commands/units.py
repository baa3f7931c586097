"""`qwenapi install-units`: writes systemd's unit files and wrappers, made to fit this machine.

The shipped files are valid as they stand; rendering replaces their default prefix, user and groups.
Each written file ends with a line that seals it, so that a later run renews what it wrote and keeps
what somebody changed. A layout is wrappers under a document's own names (see api/__init__.py).
"""

import argparse
import grp
import hashlib
import os
import pwd
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qwenapi.settings.table import etc_dir
from workers.errors import ConfigError

LAYOUTS = {
    "coder": "the units and qwen_coder_api.service (document 000)",
    "ai-agent": "src/api_examples.py (document 001)",
    "machine": "scripts/check-service.sh and docker/docker-compose.yml (document 002)",
}
DESTINATIONS = {
    None: "/etc/systemd/system",
    "coder": "/etc/systemd/system",
    "ai-agent": "/home/ubuntu/ai-agent",
    "machine": "/home/user/machine",
}
UNITS = (
    "qwenapi-model@.service",
    "qwenapi-http@.service",
    "qwenapi-http@.socket",
    "qwenapi@.target",
)
WEB_GROUPS = ("www-data", "nginx")
SEAL = "# written by qwenapi install-units "
# systemd gives meaning to % and $ and splits at spaces; a wrapper is shell or Python.
_PREFIX = re.compile(r"/[A-Za-z0-9._/+@-]*")
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Placing:
    """One file to write."""

    path: Path
    text: str
    mode: int = 0o644

    @property
    def sealed(self) -> str:
        return f"{self.text}{SEAL}{_digest(self.text)}\n"

    @property
    def is_there(self) -> bool:
        return self._existing == self.sealed

    @property
    def is_foreign(self) -> bool:
        """Return whether the path holds something that was not written here, or was changed."""
        existing = self._existing
        text, _, digest = (existing or "").rpartition(SEAL)
        return existing is not None and digest.strip() != _digest(text)

    def write(self) -> None:
        """Write it whole: a reader finds the old file or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.new")
        new.write_text(self.sealed, encoding="utf-8")
        new.chmod(self.mode)
        new.replace(self.path)

    @property
    def _existing(self) -> str | None:
        if self.path.is_symlink() or not self.path.exists():
            return "" if self.path.is_symlink() else None
        return self.path.read_text(encoding="utf-8", errors="replace")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the command its flags."""
    layouts = "; ".join(f"{name}: {what}" for name, what in LAYOUTS.items())
    root = etc_dir().parent
    parser.add_argument("--prefix", default=str(root), help="the checkout that is to be run")
    parser.add_argument("--user", default="qwenapi", help="whom the service runs as")
    parser.add_argument("--group", help="its group; without it the user's own")
    parser.add_argument("--web-group", help="nginx's group; without it www-data or nginx")
    parser.add_argument("--destination", help="folder; without it systemd's or the document's")
    parser.add_argument("--layout", choices=list(LAYOUTS), help=layouts)
    parser.add_argument("--dry-run", action="store_true", help="print the files, write nothing")
    parser.add_argument("--force", action="store_true", help="overwrite what somebody changed")


def main(parsed: argparse.Namespace) -> int:
    """Write or print the files; raise ConfigError before anything is written."""
    placings = list(_placings(parsed))
    if parsed.dry_run:
        for placing in placings:
            print(f"# {placing.path}\n{placing.sealed}")
        return 0
    _check_machine(parsed)
    foreign = [str(placing.path) for placing in placings if placing.is_foreign]
    if foreign and not parsed.force:
        raise ConfigError(
            f"not written here, or changed since: {', '.join(foreign)}; move your changes to a"
            " drop-in (systemctl edit), or overwrite with --force"
        )
    for placing in placings:
        print(f"{'unchanged' if placing.is_there else 'written'}: {placing.path}")
        _write(placing)
    if parsed.layout in (None, "coder"):
        name = "qwen_coder_api" if parsed.layout else "qwenapi@all.target"
        print(f"next: systemctl daemon-reload && systemctl enable --now {name}")
    return 0


def _placings(parsed: argparse.Namespace) -> Iterator[Placing]:
    values = _values(parsed)
    destination = Path(os.path.abspath(parsed.destination or DESTINATIONS[parsed.layout]))
    source = etc_dir().parent / "systemd"
    if not source.is_dir():
        raise ConfigError("the unit files come with a checkout: run bin/qwenapi of one")
    if parsed.layout in (None, "coder"):
        for name in UNITS:
            yield _placing(source / name, destination / name, values)
    if parsed.layout is not None:
        folder = source / "layouts" / parsed.layout
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield _placing(file, destination / file.relative_to(folder), values)
    if parsed.layout == "machine":
        name = "docker-compose.yml"
        yield _placing(etc_dir() / "docker" / name, destination / "docker" / name, values)


def _placing(source: Path, path: Path, values: dict[str, str]) -> Placing:
    text = source.read_text(encoding="utf-8")
    for shipped, wanted in values.items():
        text = text.replace(shipped, wanted)
    return Placing(path, text, source.stat().st_mode & 0o755)


def _values(parsed: argparse.Namespace) -> dict[str, str]:
    """Return what stands in place of the shipped files' defaults."""
    prefix = os.path.abspath(os.path.expanduser(parsed.prefix))
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(f"--prefix {prefix}: unit files allow letters, digits and ._/+@- only")
    web_group = parsed.web_group or next(filter(_is_group, WEB_GROUPS), WEB_GROUPS[0])
    group = parsed.group or _own_group(parsed.user)
    for flag, name in (("user", parsed.user), ("group", group), ("web-group", web_group)):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"--{flag} {name}: not a name that systemd takes")
    return {
        "/opt/qwenapi": prefix,
        "context: ../..": f"context: {prefix}",
        "\nUser=qwenapi\n": f"\nUser={parsed.user}\n",
        "\nGroup=qwenapi\n": f"\nGroup={group}\n",
        "\nSocketUser=qwenapi\n": f"\nSocketUser={parsed.user}\n",
        "\nSocketGroup=www-data\n": f"\nSocketGroup={web_group}\n",
    }


def _check_machine(parsed: argparse.Namespace) -> None:
    """Refuse what could not run: no program at the prefix, no such user, no way to it for him."""
    python = Path(os.path.abspath(os.path.expanduser(parsed.prefix))) / ".venv" / "bin" / "python"
    if not python.exists():
        raise ConfigError(f"there is no {python}: run bin/setup in the prefix first")
    if parsed.layout not in (None, "coder"):
        return
    try:
        user = pwd.getpwnam(parsed.user)
    except KeyError:
        raise ConfigError(
            f"there is no user {parsed.user}; make it: useradd --system {parsed.user}"
        ) from None
    for folder in (*python.parents, *python.resolve().parents):
        if not _may_enter(folder, user):
            raise ConfigError(
                f"{parsed.user} may not enter {folder}, where the program lies; allow it (chmod"
                " o+x), or take a --prefix elsewhere whose Python is elsewhere too"
            )


def _may_enter(folder: Path, user: pwd.struct_passwd) -> bool:
    status = folder.stat()
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & 0o100) or user.pw_uid == 0
    return bool(status.st_mode & (0o010 if status.st_gid in groups else 0o001)) or user.pw_uid == 0


def _write(placing: Placing) -> None:
    try:
        placing.write()
    except OSError as error:
        raise ConfigError(
            f"cannot write {placing.path}: {error.strerror}; run it as root (sudo), or choose"
            " another --destination, or see the files with --dry-run"
        ) from error


def _own_group(user: str) -> str:
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return user


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
