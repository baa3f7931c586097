"""Commands to a running supervisor over its admin socket: status, reload, drain."""

import argparse
import json
import socket
import sys
from pathlib import Path
from typing import Any

from qwenapi.settings.run_dir import Command, run_dir
from qwenapi.settings.sources import load
from qwenapi.settings.table import table
from workers.errors import ConfigError, ExitCode

# Which start is meant is said as it was said at its start.
FINDING_FLAGS = ("run_dir", "port", "uds", "profile", "config", "model")
NOT_READY = 1


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Give `parser` the flags of status, reload or drain."""
    for name in FINDING_FLAGS:
        row = table()[name]
        help = f"that of the start: {row.help}"
        parser.add_argument(row.flag, dest=name, default=argparse.SUPPRESS, help=help)
    if command == "reload":
        parser.add_argument(
            "half", nargs="?", choices=("http", "model"), help="default: http, where there is one"
        )
    if command == "status":
        parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON")


def main(parsed: argparse.Namespace) -> int:
    """Ask and print the answer; exit with 0 when all went well, and for status all is ready."""
    request = {"command": parsed.command} | (
        {"half": parsed.half} if parsed.command == "reload" else {}
    )
    reply = ask(_connect(vars(parsed)), request)
    if reply is None and parsed.command == "drain":
        print("drained")
        return ExitCode.OK
    if reply is None:
        print("qwenapi: it ended before it answered", file=sys.stderr)
        return NOT_READY
    if "error" in reply:
        print(f"qwenapi: {reply['error']}", file=sys.stderr)
        return ExitCode.CONFIG
    print(json.dumps(reply) if getattr(parsed, "as_json", False) else _table(reply))
    return ExitCode.OK if parsed.command != "status" or reply["state"] == "ready" else NOT_READY


def ask(sock: socket.socket, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return a supervisor's reply, or None when it ended before it gave one."""
    with sock, sock.makefile("rb") as answers:
        try:
            sock.sendall(json.dumps(request).encode() + b"\n")
            line = answers.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = b""
    if not line:
        return None
    reply: dict[str, Any] = json.loads(line)
    return reply


def _connect(flags: dict[str, Any]) -> socket.socket:
    """Return a connection to the first supervisor that the flags can mean."""
    settings = load(flags)
    # A model half has no address: who names one does not mean it.
    has_address = any(name in flags for name in ("port", "uds", "profile"))
    kinds: tuple[Command, ...] = ("serve", "http") if has_address else ("serve", "http", "model")
    places = list(dict.fromkeys(run_dir(settings, kind) for kind in kinds))
    for place in places:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(place / "admin.sock"))
            return sock
        except PermissionError as error:
            raise ConfigError(f"{place}: it belongs to another user") from error
        except OSError:
            sock.close()
    raise ConfigError(f"no qwenapi runs at {_listed(places)}: say which with --run-dir or --port")


def _listed(places: list[Path]) -> str:
    return ", ".join(map(str, places))


def _table(reply: dict[str, Any]) -> str:
    """Return a status as lines for a person."""
    lines = [f"{reply['state']}, pid {reply['pid']}, for {_span(reply['seconds'])}"]
    for child in reply["children"]:
        pid = f"pid {child['pid']}" if child["pid"] else "no process"
        line = (
            f"  {child['name']:<10} {child['state']}, {pid}, for {_span(child['seconds'])},"
            f" started again {child['restarts']} times"
        )
        lines.append(line + (f"; last: {child['last_failure']}" if child["last_failure"] else ""))
    return "\n".join(lines)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
