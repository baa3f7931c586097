"""A real nginx for a test, with the shipped file: only ports, sockets and named values differ."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from qwenapi.settings.table import etc_dir
from tests.running_server import wait_for

PORTS = {"all": 8000, "coder": 8001, "qwen2": 2025}
MAIN = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr info;
{user}
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/qwenapi.conf;
}}
"""


def shipped() -> str:
    return (etc_dir() / "nginx" / "qwenapi.conf").read_text(encoding="utf-8")


def nginx_program() -> str:
    """Return the path of nginx; skip the test where there is none."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    return program


class RunningNginx:
    """`halves`: the Unix sockets of the instances by name; `values`: directives with another
    value, for instance {"proxy_read_timeout": "1s"}.
    """

    def __init__(
        self, folder: Path, halves: Mapping[str, Path], values: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir()
        self._ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        user = "user root;" if os.getuid() == 0 else ""
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
        text = self._rendered(folder, halves, values or {})
        (folder / "qwenapi.conf").write_text(text, encoding="utf-8")
        self._log_path = folder / "error.log"
        command = [nginx_program(), "-p", str(folder), "-c", str(folder / "nginx.conf")]
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._is_listening, 10, lambda: self.log)

    @property
    def log(self) -> str:
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def url(self, half: str = "all") -> str:
        return f"http://127.0.0.1:{self._ports[half]}"

    def connect(self, half: str = "all") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._ports[half]), timeout=60)

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.wait(10) == 0, self.log

    def _rendered(self, folder: Path, halves: Mapping[str, Path], values: Mapping[str, str]) -> str:
        text = shipped()
        for name, port in PORTS.items():
            text = _replaced(text, rf"\b{port}\b(?=;| qwenapi_)", str(self._ports[name]))
            place = halves.get(name, folder / "nobody.sock")
            text = _replaced(text, rf"/run/qwenapi/http-{name}\.sock", str(place))
        for directive, value in values.items():
            text = _replaced(text, rf"(?m)^( *){directive} [^;]*;", rf"\g<1>{directive} {value};")
        return text

    def _is_listening(self) -> bool:
        assert self._process.poll() is None, self.log
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._ports["all"])) == 0


def _replaced(text: str, pattern: str, by: str) -> str:
    replaced, count = re.subn(pattern, by, text)
    assert count, f"the shipped file has no {pattern}"
    return replaced


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
