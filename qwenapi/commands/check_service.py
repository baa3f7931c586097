"""`bin/check-service`: looks at a service from outside, and prints how well it is.

Imports the standard library only, so that it also runs where what it looks at is broken. The exit
codes are those of monitoring plug-ins. It changes nothing; the generation is eight tokens long.
"""

import argparse
import contextlib
import enum
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

DEFAULT_URL = "http://127.0.0.1:8000"
UNITS = "qwenapi-*"
# What a log line holds that tells of a failure; requests that failed are logged as `ending=failed`.
FAILURE = re.compile(r"\berror\b|critical|traceback|ending=failed|\bhangs\b", re.IGNORECASE)
# The bytes by which the first token of each interface is known.
CHAT_TOKEN = re.compile(rb'"content": ?"[^"]|\[DONE\]')
GENERATE_TOKEN = re.compile(rb'"generated_texts"')
TURN_TOKEN = re.compile(rb"\n---\n.", re.DOTALL)
NUM_LOG_LINES = 3
LOG_TAIL_BYTES = 256 * 1024
NUM_TOKENS = 8


class Status(enum.IntEnum):
    """How well; the greatest of all checks is the exit code."""

    OK = 0
    DEGRADED = 1
    DOWN = 2


USAGE_EXIT_CODE = 3


@dataclass(frozen=True)
class ServiceCheck:
    """What was looked at, how it is, in words and in figures."""

    name: str
    status: Status
    text: str
    figures: dict[str, Any] = field(default_factory=dict)


class Server:
    """The server at a URL, http://, https:// or unix:/path; one connection a request."""

    def __init__(self, url: str, timeout: float, api_key: str) -> None:
        self._parts = urllib.parse.urlsplit(url)
        self._timeout = timeout
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        if self._parts.scheme not in ("http", "https", "unix") or not self.address:
            raise ValueError(f"{url}: must be http://HOST:PORT, https://… or unix:/PATH")

    @property
    def address(self) -> str:
        parts = self._parts
        if parts.scheme == "unix":
            return parts.path
        default = 443 if parts.scheme == "https" else 80
        return f"{parts.hostname}:{parts.port or default}" if parts.hostname else ""

    def connect(self) -> None:
        """Connect and leave again."""
        connection = self._connection()
        connection.connect()
        connection.close()

    @contextlib.contextmanager
    def ask(self, method: str, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        payload = None if body is None else json.dumps(body).encode()
        headers = self._headers | ({"Content-Type": "application/json"} if payload else {})
        prefix = "" if self._parts.scheme == "unix" else self._parts.path.rstrip("/")
        try:
            connection.request(method, prefix + path, payload, headers)
            yield connection.getresponse()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and body, parsed if it is JSON."""
        with self.ask("GET", path) as response:
            raw = response.read()
            try:
                return response.status, json.loads(raw)
            except ValueError:
                return response.status, raw.decode(errors="replace")

    def _connection(self) -> http.client.HTTPConnection:
        parts = self._parts
        if parts.scheme == "unix":
            return _UnixConnection(parts.path, self._timeout)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        return kind(parts.hostname or "", parts.port, timeout=self._timeout)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def main(arguments: list[str] | None = None) -> int:
    """ServiceCheck and print; return the exit code."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    try:
        server = Server(parsed.url, parsed.timeout, parsed.api_key)
    except ValueError as error:
        parser.error(str(error))
    checks = list(_checks(parsed, server))
    status = max(check.status for check in checks)
    if parsed.json:
        shown = [asdict(check) | {"status": check.status.name.lower()} for check in checks]
        report = {"url": parsed.url, "status": status.name.lower(), "checks": shown}
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        for check in checks:
            print(f"{check.status.name.lower():9}{check.name:12}{check.text}")
        print(f"{parsed.url}: {status.name.lower()}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="check-service",
        description=__doc__,
        epilog="exit code: 0 well, 1 serving but degraded, 2 down, 3 called wrongly",
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="default %(default)s; unix:/PATH too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--run-dir", type=Path, help="run folder of a service without systemd")
    parser.add_argument("--log", type=Path, help="log file; without it systemd's journal")
    parser.add_argument("--timeout", type=float, default=30, help="seconds for each answer")
    parser.add_argument(
        "--slow", type=float, default=10, help="seconds to a first token that mean degraded"
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("QWENAPI_API_KEY", ""),
        help="where the service asks for keys; better put into $QWENAPI_API_KEY",
    )
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_EXIT_CODE, f"check-service: {message}\n")


def _checks(parsed: argparse.Namespace, server: Server) -> Iterator[ServiceCheck]:
    yield check_process(parsed.run_dir)
    port = check_port(server)
    yield port
    if port.status is Status.OK:
        for path in ("/readyz", "/health"):
            yield _guarded(path, lambda path=path: check_answer(server, path))  # type: ignore[misc]
        yield _guarded("figures", lambda: check_figures(server, parsed.slow))
        deadline = time.monotonic() + parsed.timeout
        yield _guarded("generation", lambda: check_generation(server, parsed.slow, deadline))
    yield check_gpu()
    yield check_log(parsed.log)


def _guarded(name: str, look: Callable[[], ServiceCheck]) -> ServiceCheck:
    try:
        return look()
    except TimeoutError:
        return ServiceCheck(name, Status.DOWN, "no answer in time")
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return ServiceCheck(name, Status.DOWN, f"no usable answer: {type(error).__name__}: {error}")


def check_process(run_dir: Path | None) -> ServiceCheck:
    """Look at the units of systemd, or at the supervisors whose run folders lie here."""
    units = {} if run_dir else _units()
    if units:
        ill = {name: state for name, state in units.items() if state != "active"}
        text = ", ".join(f"{name} {state}" for name, state in units.items())
        return ServiceCheck(
            "service", Status.DEGRADED if ill else Status.OK, text, {"units": units}
        )
    owners = {str(folder): _owner(folder) for folder in _run_dirs(run_dir)}
    alive = {folder: pid for folder, pid in owners.items() if pid is not None}
    if run_dir and not alive:
        return ServiceCheck("service", Status.DEGRADED, f"{run_dir}: no supervisor runs there")
    if not alive:  # the service may be another user's, or another machine's
        return ServiceCheck("service", Status.OK, "no unit and no supervisor found: not looked at")
    text = ", ".join(f"{folder} pid {pid}" for folder, pid in alive.items())
    return ServiceCheck("service", Status.OK, text, {"supervisors": alive})


def check_port(server: Server) -> ServiceCheck:
    """Connect."""
    started = time.monotonic()
    try:
        server.connect()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return ServiceCheck("port", Status.DOWN, f"{server.address}: {reason}")
    milliseconds = round(1000 * (time.monotonic() - started), 1)
    text = f"{server.address} open, {milliseconds} ms"
    return ServiceCheck("port", Status.OK, text, {"connect_ms": milliseconds})


def check_answer(server: Server, path: str) -> ServiceCheck:
    """Ask whether it is ready, in one of the two ways."""
    status, body = server.get(path)
    text = f"{status} {json.dumps(body, ensure_ascii=False)}"[:200]
    figures = {"http_status": status, "body": body}
    return ServiceCheck(path, Status.OK if status == 200 else Status.DOWN, text, figures)


def check_figures(server: Server, slow: float) -> ServiceCheck:
    """Read the service's own report: first tokens, tokens per second, who runs and who waits."""
    status, body = server.get("/api/v1/metrics")
    if status != 200:
        why = "a key is needed" if status in (401, 403) else f"status {status}"
        return ServiceCheck("figures", Status.OK, f"not available: {why}")
    ttft, throughput, requests = body["slo"]["ttft"], body["slo"]["throughput"], body["requests"]
    figures = {
        "ttft_p50": ttft["p50"],
        "ttft_p95": ttft["p95"],
        "tokens_per_second": throughput["decoding_mean"],
        "running": requests["running"],
        "waiting": requests["waiting"],
        "alerts": body["alerts_count"],
    }
    text = (
        f"first token p50 {ttft['p50']} s, p95 {ttft['p95']} s;"
        f" {throughput['decoding_mean']} tokens/s a request;"
        f" {requests['running']} running, {requests['waiting']} waiting;"
        f" {body['alerts_count']} alerts"
    )
    is_ill = ttft["p95"] > slow or body["alerts_count"] > 0
    return ServiceCheck("figures", Status.DEGRADED if is_ill else Status.OK, text, figures)


def check_generation(server: Server, slow: float, deadline: float) -> ServiceCheck:
    """Have a few tokens generated, by the first interface that is served here."""
    status, models = server.get("/v1/models")
    prompt = "Say hello."
    if status == 200:
        chat = {
            "model": models["data"][0]["id"],
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": NUM_TOKENS,
            "stream": True,
        }
        return _generation(server, "/v1/chat/completions", chat, slow, deadline, CHAT_TOKEN)
    if status in (401, 403):
        return ServiceCheck("generation", Status.OK, "not tried: a key is needed (--api-key)")
    body = {"prompt": prompt, "max_length": NUM_TOKENS}
    found = _generation(server, "/generate", body, slow, deadline, GENERATE_TOKEN)
    if found.figures.get("http_status") != 404:
        return found
    # Its answers may be long: only the first token is waited for.
    turn = {"prompt": prompt}
    return _generation(server, "/v1/code/chat_stream", turn, slow, deadline, TURN_TOKEN)


def check_gpu() -> ServiceCheck:
    """Ask nvidia-smi for memory and use."""
    if shutil.which("nvidia-smi") is None:
        return ServiceCheck("gpu", Status.OK, "no nvidia-smi here: not looked at")
    wanted = "name,memory.used,memory.total,utilization.gpu,temperature.gpu"
    lines = _output("nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader")
    if not lines:
        return ServiceCheck("gpu", Status.DEGRADED, "nvidia-smi finds no device")
    return ServiceCheck("gpu", Status.OK, "; ".join(lines), {"gpus": lines})


def check_log(path: Path | None) -> ServiceCheck:
    """Show the last lines that tell of a failure; old ones mean nothing, so it is always OK."""
    if path is not None:
        try:
            with path.open("rb") as log:
                log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError as error:
            return ServiceCheck("last errors", Status.OK, f"{path}: {error.strerror}")
    elif _has_systemd():
        lines = _output("journalctl", "--no-pager", "-q", "-n", "2000", "-u", UNITS)
    else:
        return ServiceCheck("last errors", Status.OK, "no journal here; name a file with --log")
    failures = [line.strip()[:300] for line in lines if FAILURE.search(line)][-NUM_LOG_LINES:]
    text = "".join(f"\n{'':21}{line}" for line in failures) or "none"
    return ServiceCheck("last errors", Status.OK, text, {"lines": failures})


def _generation(
    server: Server, path: str, body: Any, slow: float, deadline: float, sign: re.Pattern[bytes]
) -> ServiceCheck:
    """Post, wait for the bytes after which the first token is, and for the end if that is near."""
    started = time.monotonic()
    first, received = None, b""
    with server.ask("POST", path, body) as response:
        while piece := response.read1(65536):
            received += piece
            if first is None and sign.search(received):
                first = time.monotonic() - started
            if time.monotonic() > deadline:
                raise TimeoutError
            if first is not None and path.endswith("chat_stream"):
                break
        figures: dict[str, Any] = {"http_status": response.status, "path": path}
    if response.status != 200 or first is None or b'"error":' in received:
        shown = received[-200:].decode(errors="replace")
        return ServiceCheck(
            "generation", Status.DOWN, f"{path}: {response.status} {shown}", figures
        )
    figures |= {"first_token": round(first, 3), "seconds": round(time.monotonic() - started, 3)}
    text = f"{path}: first token {figures['first_token']} s, end {figures['seconds']} s"
    return ServiceCheck("generation", Status.DEGRADED if first > slow else Status.OK, text, figures)


def _has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def _units() -> dict[str, str]:
    """Return the state of each unit of ours that systemd knows."""
    if not _has_systemd():
        return {}
    states, name = {}, ""
    for line in _output("systemctl", "show", "-p", "Id,ActiveState", f"{UNITS}.service"):
        key, _, value = line.partition("=")
        if key == "Id":
            name = value
        elif key == "ActiveState":
            states[name] = value
    return states


def _run_dirs(run_dir: Path | None) -> list[Path]:
    if run_dir is not None:
        return [run_dir]
    parent = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    return [lock.parent for lock in parent.glob(f"qwenapi-{os.getuid()}/*/supervisor.lock")]


def _owner(folder: Path) -> int | None:
    """Return the pid of the supervisor that runs in a folder."""
    try:
        pid = int((folder / "supervisor.lock").read_text())
        os.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError):
        return None
    return pid


def _output(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


if __name__ == "__main__":
    sys.exit(main())
