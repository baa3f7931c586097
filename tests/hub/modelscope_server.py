"""ModelScope on loopback with one repository: what its library asks to fetch it.

    GET /api/v1/models/{id}/repo/files?Revision=…            the files' sizes and SHA-256
    GET /api/v1/models/{id}/repo?Revision=…&FilePath=…       one file, with Range

By the requests of modelscope 1.40.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

REPO = "org/tiny"


@contextmanager
def modelscope_server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder; yield the endpoint, and the names of the files that are asked for."""
    fetched: list[str] = []
    handler = type("Handler", (_Handler,), {"folder": folder, "fetched": fetched})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    fetched: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        base = f"/api/v1/models/{REPO}/repo"
        if parts.path == f"{base}/files":
            files = [_entry(file) for file in self.folder.iterdir() if file.is_file()]
            return self._send(json.dumps({"Code": 200, "Data": {"Files": files}}).encode())
        if parts.path == base:
            name = parse_qs(parts.query)["FilePath"][0]
            if self.command == "GET":
                self.fetched.append(name)
            return self._send((self.folder / name).read_bytes())
        self._send(b"", 404)

    def _send(self, body: bytes, status: int = 200) -> None:
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        total = len(body)
        if asked and status == 200:
            first, _, last = asked.partition("-")
            body = body[int(first) : int(last) + 1 if last else None]
            status = 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            end = int(first) + len(body) - 1
            self.send_header("Content-Range", f"bytes {first}-{end}/{total}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _entry(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return {
        "Path": file.name,
        "Name": file.name,
        "Type": "blob",
        "Size": len(data),
        "Sha256": sha256,
    }
