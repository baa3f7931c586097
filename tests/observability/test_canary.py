"""A caller's words are looked for wherever a server could have left them, faults included."""

import os
import signal
from pathlib import Path

import psutil

from tests.observability.test_logs import chat, leave_early
from tests.running_server import wait_for

CANARY = "kanarienvogel-8813"
BODY = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 4000}


def files_with(word: bytes, *folders: Path) -> list[Path]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if word in path.read_bytes()]


def shown_by(process: psutil.Process) -> bytes:
    """Return what other programs see of a process: its command line and its environment."""
    place = Path(f"/proc/{process.pid}")
    return b"".join((place / name).read_bytes() for name in ("cmdline", "environ"))


def test_what_a_caller_wrote_is_in_no_file_and_no_command_line(start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.01", "--profile", "all")
    before = set(Path("/tmp").iterdir())
    assert chat(server, CANARY).status_code == 200
    assert chat(server, CANARY, temperature=CANARY).status_code == 400
    leave_early(server, "/v1/chat/completions", json=BODY | {"stream": True})
    response = server.post("/v1/responses", {"input": CANARY, "store": False})
    assert response.status_code == 200
    for pid in (server.row()["pid"], server.http_workers()[0].pid):
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: chat_again(server), 30)
    processes = [psutil.Process(server.process.pid), *server.tree()]
    assert not any(CANARY.encode() in shown_by(process) for process in processes)
    shared = [path for path in Path("/dev/shm").glob("qwenapi*") if path.is_file()]
    assert not any(CANARY.encode() in path.read_bytes() for path in shared)
    assert files_with(CANARY.encode(), server.run_dir) == []
    mine = [path for path in set(Path("/tmp").iterdir()) - before if path.is_dir()]
    assert files_with(CANARY.encode(), *mine) == []
    answers = [server.get(path).text for path in ("/metrics", "/status", "/health", "/v1/models")]
    assert not any(CANARY in answer for answer in answers)
    server.stop()
    assert CANARY not in server.log


def test_a_conversation_that_was_kept_is_found_so_the_search_can_find(start_server):
    server = start_server("--stub")
    assert server.post("/v1/responses", {"input": CANARY, "store": True}).status_code == 200
    assert files_with(CANARY.encode(), server.run_dir)


def chat_again(server):
    try:
        return chat(server, CANARY).status_code == 200
    except OSError:
        return False
