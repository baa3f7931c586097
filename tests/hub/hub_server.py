"""A hub on loopback with one repository: what huggingface_hub asks of huggingface.co to fetch it.

    GET  /api/models/{id}[/revision/{rev}]    the commit, and the files' sizes and hashes
    GET  /api/models/{id}/tree/{commit}       the same, as a list
    HEAD /{id}/resolve/{commit}/{file}        ETag, X-Repo-Commit, X-Linked-Size
    GET  the same, with Range

As described in huggingface.co/docs/hub/api and the library's own requests.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "org/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_right"
_PIECE = 1 << 20


class HubServer:
    """Serves a folder as REPO at revision `main`; its switches say what goes wrong."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }
        self.refusal: tuple[int, str] | None = None  # status and X-Error-Code of every request
        self.needs_token = False
        self.cut_once: set[str] = set()  # files whose first answer ends in the middle
        self.always_cut: set[str] = set()
        self.garbled: set[str] = set()  # files whose bytes are not those listed
        self.seconds_a_piece = 0.0
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range

    @property
    def fetched(self) -> list[str]:
        """The names of the files whose bytes were asked for, in order."""
        return [path.split("/resolve/")[1].split("/", 1)[1] for method, path, _ in self.requests
                if method == "GET" and "/resolve/" in path]  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve on loopback; yield the endpoint."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def entry(self, name: str) -> dict[str, Any]:
        """Return what the hub says of a file; large ones have LFS's hash."""
        data = self.files[name]
        if name.endswith(".safetensors"):
            lfs = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "pointerSize": 134,
            }
            return {"size": len(data), "blobId": "0" * 40, "lfs": lfs}
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {"size": len(data), "blobId": blob}

    def etag(self, name: str) -> str:
        entry = self.entry(name)
        return str(entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"])


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if hub.refusal is not None:
            return self._refuse(*hub.refusal)
        if hub.needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "GatedRepo")
        for revision in ("main", COMMIT):
            if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/{revision}"):
                files = [{"rfilename": name, **hub.entry(name)} for name in hub.files]
                return self._send_json({"id": REPO, "sha": COMMIT, "siblings": files})
            if path == f"/api/models/{REPO}/tree/{revision}":
                return self._send_json([self._tree_entry(name) for name in hub.files])
            prefix = f"/{REPO}/resolve/{revision}/"
            if path.startswith(prefix) and path.removeprefix(prefix) in hub.files:
                return self._send_file(path.removeprefix(prefix), with_body)
        if f"/{REPO}/" in path and "/resolve/" not in path:
            return self._refuse(404, "RevisionNotFound")
        return self._refuse(404, "EntryNotFound" if f"/{REPO}/" in path else "RepoNotFound")

    def _tree_entry(self, name: str) -> dict[str, Any]:
        entry = self.hub.entry(name)
        lfs = {"oid": entry["lfs"]["sha256"], **entry["lfs"]} if "lfs" in entry else None
        listed = {"type": "file", "path": name, "size": entry["size"], "oid": entry["blobId"]}
        return listed | ({"lfs": lfs} if lfs else {})

    def _send_file(self, name: str, with_body: bool) -> None:
        hub, data = self.hub, self.hub.files[name]
        if name in hub.garbled:
            data = bytes(len(data))
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        part = data[start:]
        is_cut = with_body and name in hub.always_cut | hub.cut_once
        if is_cut:
            hub.cut_once.discard(name)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hub.etag(name)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if with_body:
            self._send_slowly(part[: len(part) // 2] if is_cut else part)
        if is_cut:
            self.close_connection = True

    def _send_slowly(self, part: bytes) -> None:
        for start in range(0, len(part), _PIECE):
            self.wfile.write(part[start : start + _PIECE])
            if self.hub.seconds_a_piece:
                threading.Event().wait(self.hub.seconds_a_piece)

    def _send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
