"""Keys of a running server: tenants, limits among several HTTP processes, changes while it runs."""

import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
import requests

from qwenapi.keys.key import id_of
from tests.running_server import RunningServer, sse_events, wait_for

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
LONG = {"messages": MESSAGES, "stream": True, "max_tokens": 4000, "ignore_eos": True}


def keys(path, *arguments):
    command = [sys.executable, "-m", "qwenapi", "keys", *arguments, "--file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def add(path, tenant, *flags):
    return keys(path, "add", "--tenant", tenant, *flags)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def ask(server, key, path=CHAT, **fields):
    body = {"messages": MESSAGES, "max_tokens": 3, **fields}
    return requests.post(server.url + path, json=body, headers=bearer(key), timeout=60)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return a server of every profile with keys of two tenants, and one key for all, `any`."""
    folder = tmp_path_factory.mktemp("keys")
    path = folder / "keys.json"
    held = {name: add(path, name) for name in ("alice", "bob")}
    held["slow"] = add(path, "slow", "--rpm", "2")
    held["small"] = add(path, "small", "--tpm", "60")
    server = RunningServer(
        folder / "run", "--stub", "--profile", "all", "--auth-keys", str(path), "--api-key", "any"
    )
    try:
        yield server.wait_until_ready(), held
        assert server.stop() == 0
    finally:
        server.close()


def test_the_openai_library_raises_what_it_has_for_keys_and_limits(shared):
    server, held = shared

    def chat(key):
        with openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0) as client:
            return client.chat.completions.create(
                model="qwen-demo", messages=MESSAGES, max_tokens=3
            )

    assert chat("any").usage.completion_tokens == 3
    assert chat(held["alice"]).usage.completion_tokens == 3
    with pytest.raises(openai.AuthenticationError) as wrong:
        chat("wrong")
    assert wrong.value.code == "invalid_api_key"
    chat(held["slow"])
    chat(held["slow"])
    with pytest.raises(openai.RateLimitError) as limited:
        chat(held["slow"])
    assert limited.value.code == "rate_limit_exceeded"
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 30
    assert limited.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert chat(held["bob"])


def test_tokens_of_prompt_and_answer_are_used_up(shared):
    server, held = shared
    first = ask(server, held["small"], max_tokens=40)
    usage = first.json()["usage"]
    assert first.status_code == 200
    assert int(first.headers["x-ratelimit-limit-tokens"]) == 60
    again = ask(server, held["small"], max_tokens=40)
    if again.status_code == 200:  # what was left was enough for another prompt
        again = ask(server, held["small"], max_tokens=40)
    assert again.status_code == 429, usage
    assert again.json()["error"] == "This key is limited to 60 tokens per minute."
    assert int(again.headers["Retry-After"]) >= 1


def test_a_conversation_of_another_tenant_is_as_unknown_as_any(shared):
    server, held = shared
    url = f"{server.url}/v1/code"

    def turn(key, conversation=None):
        form = {"prompt": "x"} | ({"conversation_id": conversation} if conversation else {})
        return requests.post(f"{url}/chat_stream", data=form, headers=bearer(key), timeout=60)

    begun = turn(held["alice"])
    mine = re.match(r"conversation_id:([0-9a-f-]{36})\n", begun.text)[1]
    assert turn(held["alice"], mine).status_code == 200
    unknown = "00000000-0000-4000-8000-000000000000"
    address = f"{url}/conversations/"
    for method in ("GET", "DELETE"):
        answers = [
            requests.request(method, address + one, headers=bearer(held["bob"]), timeout=60)
            for one in (mine, unknown)
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].text.replace(mine, unknown) == answers[1].text
    answers = [turn(held["bob"], one) for one in (mine, unknown)]
    assert answers[0].status_code == answers[1].status_code == 404
    assert answers[0].text.replace(mine, unknown) == answers[1].text
    assert requests.get(address + mine, headers=bearer("any"), timeout=60).status_code == 404
    shown = requests.get(address + mine, headers=bearer(held["alice"]), timeout=60)
    assert shown.status_code == 200 and len(shown.json()) > 0


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Authorization: Bearer any", "Authorization: Bearer any"],
        ["Authorization: Bearer any", "Authorization: Bearer wrong"],
        ["X-Api-Key: any", "X-Api-Key: any"],
        ["X_Api_Key: any"],
        ["X-Api-Key: other", "Authorization: Bearer any"],
        ["Authorization : Bearer any"],
        [" Authorization: Bearer any"],
        ["X-Original-URL: /livez", "X-Rewrite-URL: /livez"],
        ["X-HTTP-Method-Override: OPTIONS", "X-Forwarded-For: 127.0.0.1"],
    ],
)
@pytest.mark.parametrize("host", ["x", "x/livez?", "x#/livez"])
def test_no_header_on_the_wire_gets_round_the_key(shared, lines, host):
    server, _ = shared
    assert status_of(server, "GET /v1/models", host, lines) in (400, 401)


@pytest.mark.parametrize(
    "line",
    [
        "GET http://x/v1/models",
        "GET http://x/livez/../v1/models",
        "GET /livez/..%2fv1/models",
        "GET //v1/models",
        "GET /v1/models#/livez",
        "get /v1/models",
        "OPTIONS /v1/models",
        "OPTIONS *",
        "HEAD /v1/models",
        "POST /livez",
        "TRACE /v1/models",
    ],
)
def test_no_request_line_gets_round_the_key(shared, line):
    server, _ = shared
    assert status_of(server, line, "x", []) in (400, 401, 404, 405)
    assert status_of(server, "GET /livez", "x", []) == 200


def status_of(server, line, host, headers):
    with server.connect() as sock:
        head = [f"{line} HTTP/1.1", f"Host: {host}", *headers, "Connection: close", "", ""]
        sock.sendall("\r\n".join(head).encode())
        return int(sock.makefile("rb").readline().split()[1])


def test_the_log_names_keys_by_id_and_no_process_shows_one(shared):
    server, held = shared
    assert ask(server, held["alice"]).status_code == 200
    wait_for(lambda: f"key_id={id_of(held['alice'])}" in server.log)
    assert ask(server, "presented-but-wrong").status_code == 401
    wait_for(lambda: "code=invalid_api_key" in server.log)
    for secret in (*(text.rpartition("_")[2] for text in held.values()), "presented-but-wrong"):
        assert secret not in server.log
    for process in server.tree():
        assert "--api-key" not in process.cmdline() and "any" not in process.cmdline()


def test_keys_change_while_the_server_runs_and_a_stream_of_a_disabled_one_finishes(
    path, start_server
):
    first = add(path, "alice")
    server = start_server("--stub", "--stub-step-seconds", "0.02", "--auth-keys", str(path))
    stream = {"messages": MESSAGES, "stream": True, "max_tokens": 200, "ignore_eos": True}
    with requests.post(
        server.url + CHAT, json=stream, headers=bearer(first), stream=True, timeout=60
    ) as answer:
        pieces = answer.iter_content(None)
        raw = next(pieces)
        keys(path, "disable", id_of(first))
        wait_for(lambda: ask(server, first).status_code == 401, 15)
        raw += b"".join(pieces)
    assert sse_events(raw)[-1] == "[DONE]"
    second = add(path, "alice")
    wait_for(lambda: ask(server, second).status_code == 200, 15)
    path.write_text("{")
    wait_for(
        lambda: ask(server, second).status_code == 200 and "the keys stay as" in server.log, 15
    )
    assert ask(server, second).status_code == 200
    assert server.log.count("the keys stay as they were") == 1


def test_places_are_exact_among_http_processes_and_come_back_when_one_is_killed(path, start_server):
    key = add(path, "alice", "--concurrent", "6", "--queued", "0")
    server = start_server(
        "--stub", "--stub-step-seconds", "0.02", "--auth-keys", str(path), "--api-server-count", "3"
    )
    streams = open_streams(server, key, 24)
    assert len(streams) == 6
    workers = server.http_workers()
    assert len(workers) == 3
    victim = max(workers, key=num_callers)
    victim.kill()
    wait_for(lambda: any(is_cut(sock) for sock in streams))
    wait_for(lambda: len(alive(server)) == 3 and victim.pid not in alive(server))
    lost = [sock for sock in streams if is_cut(sock)]
    more = open_streams(server, key, 18)
    assert 0 < len(lost) == len(more)
    streams += more
    close_all(streams)
    server.wait_until_idle()
    wait_for(lambda: ask(server, key).status_code == 200)


def open_streams(server, key, count):
    """Return the sockets of the streams that were begun of several asked for at once; the others
    were refused.
    """
    barrier = threading.Barrier(count)
    body = json.dumps(LONG)
    head = [f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head += [f"Content-Length: {len(body)}", f"Authorization: Bearer {key}", "", body]

    def begin(_):
        sock = server.connect()
        barrier.wait(30)
        sock.sendall("\r\n".join(head).encode())
        return sock, int(sock.recv(12).split()[1])

    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(begin, range(count)))
    assert {status for _, status in answers} <= {200, 429}
    close_all(sock for sock, status in answers if status == 429)
    return [sock for sock, status in answers if status == 200]


def close_all(sockets):
    for sock in sockets:
        sock.close()


def alive(server):
    return {worker.pid for worker in server.http_workers()}


def num_callers(worker: psutil.Process) -> int:
    """Return how many connections of a worker are still open on both sides."""
    states = [connection.status for connection in worker.net_connections("tcp")]
    return states.count(psutil.CONN_ESTABLISHED)


def is_cut(sock):
    """Return whether the other end of a stream has gone, reading what has come."""
    sock.setblocking(False)
    try:
        while data := sock.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    return not data


def test_who_has_no_place_waits_its_turn_and_the_next_is_refused(path, start_server):
    key = add(path, "alice", "--concurrent", "1", "--queued", "2")
    server = start_server(
        "--stub", "--stub-step-seconds", "0.01", "--auth-keys", str(path), "--api-server-count", "3"
    )
    (running,) = open_streams(server, key, 1)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, server, key) for _ in range(6)]
        wait_for(lambda: sum(one.done() for one in asked) == 4)
        assert [one.result().status_code for one in asked if one.done()] == [429] * 4
        running.close()
        assert sorted(one.result().status_code for one in asked) == [200] * 2 + [429] * 4


def test_a_prompt_in_the_cache_of_one_tenant_is_not_in_anothers(path, start_server):
    alice, bob = add(path, "alice"), add(path, "bob")
    again = add(path, "alice")
    server = start_server("--auth-keys", str(path), "--max-model-len", "512")
    prompt = [{"role": "user", "content": "一二三四五六七八九十" * 20}]

    def cached(key):
        answer = ask(server, key, messages=prompt, max_tokens=1)
        assert answer.status_code == 200, answer.text
        return (answer.json()["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)

    assert cached(alice) == 0
    assert cached(bob) == 0
    assert cached(alice) > 0 and cached(bob) > 0
    assert cached(again) > 0  # a key is of a tenant, and the cache is the tenant's


def test_a_profile_that_says_nothing_is_served_to_loopback_only(tmp_path):
    profile = tmp_path / "mine.toml"
    profile.write_text('[api]\nnames = ["x"]\n')
    command = [sys.executable, "-m", "qwenapi", "http", "--profile", str(profile), "--port", "0"]
    command += ["--run-dir", str(tmp_path / "run"), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 78
    assert "auth.mode" in done.stderr.splitlines()[-1]
