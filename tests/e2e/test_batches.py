"""Files and batches through OpenAI's library and plain HTTP, against real servers on the stub."""

import json
import os
import signal
import sqlite3
import threading
import time
from contextlib import closing

import openai
import pytest
import requests

from tests.e2e.test_keys import add, keys
from tests.e2e.test_reload import command
from tests.running_server import RunningServer, wait_for

CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "cancelled", "expired")


def line(custom_id, url=CHAT, **fields):
    body = {"messages": [{"role": "user", "content": f"say {custom_id} 你好🙂"}], "max_tokens": 4}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body | fields}


def jsonl(*lines):
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    return "".join(text + "\n" for text in texts).encode()


def client_of(server, key="any"):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(stub_server):
    with client_of(stub_server) as client:
        yield client


def begin(client, *lines, endpoint=CHAT, **fields):
    uploaded = client.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch")
    return client.batches.create(
        input_file_id=uploaded.id, endpoint=endpoint, completion_window="24h", **fields
    )


def wait_until(client, batch, *statuses, timeout=60):
    def found():
        now = client.batches.retrieve(batch.id)
        return now if now.status in (statuses or OVER) else None

    return wait_for(found, timeout, lambda: client.batches.retrieve(batch.id))


def answers(client, file_id):
    """Return the lines of an output by id; each id must have one."""
    lines = [json.loads(one) for one in client.files.content(file_id).text.splitlines()]
    found = {one["custom_id"]: one for one in lines}
    assert len(found) == len(lines)
    return found


def test_a_batch_answers_each_line_as_the_server_does(client, stub_server):
    lines = [line(f"c{i}", seed=i) for i in range(50)] + [line("bad", messages="x")]
    batch = begin(client, *lines, metadata={"k": "v"})
    assert batch.object == "batch" and batch.status == "validating" and batch.errors is None
    assert batch.expires_at == batch.created_at + 24 * 3600 and batch.output_file_id is None
    done = wait_until(client, batch)
    assert done.status == "completed" and done.metadata == {"k": "v"}
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (51, 50, 1)
    assert done.in_progress_at <= done.finalizing_at <= done.completed_at
    found = answers(client, done.output_file_id)
    for one in lines[:-1]:
        answer = found[one["custom_id"]]
        assert answer["error"] is None and answer["response"]["status_code"] == 200
        alone = stub_server.post(CHAT, one["body"]).json()
        assert answer["response"]["body"]["choices"] == alone["choices"]
    failed = answers(client, done.error_file_id)["bad"]
    assert failed["response"]["status_code"] == 400 and failed["response"]["request_id"]
    assert "messages" in failed["response"]["body"]["error"]["message"]
    assert done.id in [one.id for one in client.batches.list()]


def test_what_json_can_say_and_no_request_should_fails_its_line_alone(client):
    deep = "[" * 900 + "]" * 900
    odd = ['{"messages": "\\ud800"}', '{"seed": 1e400}', '{"seed": 123456789012345678901234567890}',
           f'{{"x": {deep}}}', '{"messages": null}', "{}"]  # fmt: skip
    lines = [
        f'{{"custom_id": "o{i}", "method": "POST", "url": "{CHAT}", "body": {body}}}'
        for i, body in enumerate(odd)
    ]
    done = wait_until(client, begin(client, *lines, line("fine"), line("\ud800")))
    assert done.status == "completed", done
    assert answers(client, done.output_file_id).keys() == {"fine"}
    failed = answers(client, done.error_file_id)
    assert failed.keys() == {"\ud800", *(f"o{i}" for i in range(len(odd)))}
    assert all(one["response"]["status_code"] in (400, 422) for one in failed.values())


def test_files_are_kept_listed_read_and_deleted(client, stub_server):
    content = jsonl(line("a"), line("你好"))
    made = client.files.create(file=("文件.jsonl", content), purpose="batch")
    assert made.bytes == len(content) and made.purpose == "batch" and made.object == "file"
    assert made.filename == "文件.jsonl"
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == content
    others = [client.files.create(file=b"{}\n", purpose="batch") for _ in range(3)]
    newest_first = [*(one.id for one in reversed(others)), made.id]
    listed = [one.id for one in client.files.list(limit=2)]  # the library asks for the pages
    assert listed[:4] == newest_first
    assert client.files.list(purpose="batch_output", limit=1).data != listed[:1]
    for one in (*others, made):
        assert client.files.delete(one.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert stub_server.get(f"/v1/files/{made.id}/content").status_code == 404


@pytest.mark.parametrize(
    ("lines", "number", "what"),
    [
        (("{",), 1, "is no JSON"),
        ((line("a"), line("a")), 2, "used before"),
        ((line("a"), line("b", "/v1/completions")), 2, "'url' must be"),
        ((line("a", stream=True),), 1, "stream"),
        (("",), None, "no lines"),
    ],
)
def test_an_unfit_input_fails_the_batch_and_names_the_line(client, lines, number, what):
    done = wait_until(client, begin(client, *lines))
    assert done.status == "failed" and done.failed_at and done.output_file_id is None
    (error,) = done.errors.data
    assert error.line == number and what in error.message and "/" not in error.message.split("'")[0]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"endpoint": "/v1/nothing"}, "endpoint"),
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"endpoint": "/v1/batches"}, "endpoint"),
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"endpoint": "/v1/conversations"}, "endpoint"),
        ({"endpoint": "/v1/messages/count_tokens"}, "endpoint"),
        ({"endpoint": "/v1/code/chat_stream"}, "endpoint"),
        ({"endpoint": "//v1/chat/completions"}, "endpoint"),
        ({"endpoint": ""}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": []}, "metadata"),
        ({"endpoint": None}, "endpoint"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_by_the_fields_name(client, stub_server, fields, what):
    file = client.files.create(file=jsonl(line("a")), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"} | fields
    refused = stub_server.post("/v1/batches", body)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == what


def test_forms_that_are_no_file_are_refused(stub_server):
    url = stub_server.url + "/v1/files"

    def post(**options):
        return requests.post(url, timeout=30, **options)

    file = {"file": ("a", b"{}")}
    assert post(json={"file": "x"}).status_code == 415
    assert post(files=file).json()["error"]["param"] == "purpose"
    assert post(files=file, data={"purpose": "fine-tune"}).status_code == 400
    assert post(files={"other": ("a", b"{}")}, data={"purpose": "batch"}).status_code == 400
    text = {"purpose": "batch", "file": "a text that is no file"}
    assert post(files={"other": ("a", b"{}")}, data=text).json()["error"]["param"] == "file"
    assert post(files={"file": ("a", b"")}, data={"purpose": "batch"}).status_code == 400
    torn = {"Content-Type": "multipart/form-data; boundary=x"}
    assert post(data=b"--x\r\nnothing", headers=torn).status_code == 400
    no_boundary = {"Content-Type": "multipart/form-data"}
    assert post(data=b"--x\r\nnothing", headers=no_boundary).status_code == 400
    more = post(files=file, data={"purpose": "batch", "expires_after[anchor]": "created_at"})
    assert more.status_code == 200 and "expires_after[anchor]" in more.headers["X-Ignored"]
    assert post(files={"file": ("../../x", b"{}")}, data={"purpose": "batch"}).json()[
        "filename"
    ] == "x"  # fmt: skip
    for query in ("limit=0", "limit=x", "order=up", "after=nobody"):
        assert stub_server.get("/v1/files?" + query).status_code == 400, query


def test_files_have_their_own_bound_and_bodies_keep_theirs(start_server):
    server = start_server("--stub", "--batches-max-file-bytes", "9000000")
    url = server.url + "/v1/files"
    form = {"purpose": "batch"}
    fits = requests.post(url, files={"file": b"x" * 9_000_000}, data=form, timeout=60)
    assert fits.status_code == 200 and fits.json()["bytes"] == 9_000_000
    assert len(requests.get(f"{url}/{fits.json()['id']}/content", timeout=60).content) == 9_000_000
    big = requests.post(url, files={"file": b"x" * 9_000_001}, data=form, timeout=60)
    assert big.status_code == 413 and "9000000" in big.text
    # In chunks there is no length to see it by.
    prepared = requests.Request("POST", url, files={"file": b"x" * 9_600_000}, data=form).prepare()
    pieces = (prepared.body[at : at + 65536] for at in range(0, len(prepared.body), 65536))
    headers = {"Content-Type": prepared.headers["Content-Type"]}
    chunked = requests.post(url, data=pieces, headers=headers, timeout=60)
    assert chunked.status_code == 413
    chat = server.post(CHAT, {"messages": [{"role": "user", "content": "x" * 5_000_000}]})
    assert chat.status_code == 413
    assert not [*(server.run_dir / "state/batches/files").glob("*.part")]


def test_where_files_are_off_it_says_how_to_have_them(start_server):
    server = start_server("--stub", "--batches-max-file-bytes", "0")
    for answer in (server.get("/v1/files"), server.post("/v1/batches", {})):
        assert answer.status_code == 400
    assert "--batches-max-file-bytes" in server.get("/v1/batches").json()["error"]["message"]


def test_a_cancelled_batch_keeps_what_was_answered(start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.02", "--batches-concurrency", "2")
    with client_of(server) as client:
        batch = begin(client, *(line(f"c{i}", max_tokens=20, ignore_eos=True) for i in range(100)))
        wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 4)
        with pytest.raises(openai.BadRequestError, match="not over"):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        done = wait_until(client, batch)
        assert done.status == "cancelled" and done.cancelling_at <= done.cancelled_at
        completed = done.request_counts.completed
        assert 4 <= completed < 100 and len(answers(client, done.output_file_id)) == completed
        assert client.batches.cancel(batch.id).status == "cancelled"
        assert client.files.delete(batch.input_file_id).deleted
        finished = wait_until(client, begin(client, line("a")))
        with pytest.raises(openai.BadRequestError, match="completed"):
            client.batches.cancel(finished.id)


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_process_is_followed_by_another_and_no_line_has_two_answers(
    start_server, num_processes
):
    server = start_server(
        "--stub", "--stub-step-seconds", "0.01", "--api-server-count", str(num_processes),
        "--batches-concurrency", "4",
    )  # fmt: skip
    lines = [line(f"c{i}", max_tokens=20, ignore_eos=True) for i in range(300)]
    with client_of(server) as client:
        batch = begin(client, *lines)
        kills = 0
        seen = 0
        while (now := retrieve(client, batch)) is None or now.status not in OVER:
            if now and now.request_counts.completed >= seen + 20 and kills < 3:
                seen = now.request_counts.completed
                for worker in server.http_workers():
                    os.kill(worker.pid, signal.SIGKILL)
                kills += 1
            time.sleep(0.05)
        assert kills == 3 and now.status == "completed", (now, server.log)
        assert now.request_counts.completed == 300
        found = answers(client, now.output_file_id)
    assert found.keys() == {one["custom_id"] for one in lines}


def retrieve(client, batch):
    try:
        return client.batches.retrieve(batch.id)
    except openai.APIError:
        return None  # nobody answers just now


def test_a_reload_hands_it_on(start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.01", "--batches-concurrency", "4")

    def completed():
        return client.batches.retrieve(batch.id).request_counts.completed

    with client_of(server) as client:
        batch = begin(client, *(line(f"c{i}", max_tokens=20, ignore_eos=True) for i in range(5000)))
        wait_for(lambda: completed() >= 20)
        before = {worker.pid for worker in server.http_workers()}
        assert command(server, "reload", "http").returncode == 0
        wait_for(lambda: not before & {worker.pid for worker in server.http_workers()})
        at_reload = completed()
        wait_for(lambda: completed() >= at_reload + 20)
        client.batches.cancel(batch.id)
        done = wait_until(client, batch, "cancelled")
        assert done.request_counts.failed == 0 and done.error_file_id is None
        assert len(answers(client, done.output_file_id)) == done.request_counts.completed


def test_a_restart_goes_on_with_it(start_server, tmp_path):
    state = ("--state-dir", str(tmp_path / "kept"))
    flags = ("--stub", "--stub-step-seconds", "0.01", "--batches-concurrency", "4", *state)
    server = start_server(*flags)
    lines = [line(f"c{i}", max_tokens=20, ignore_eos=True) for i in range(120)]
    with client_of(server) as client:
        batch = begin(client, *lines)
        wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 20)
    assert server.stop() == 0
    again: RunningServer = start_server(*flags)
    with client_of(again) as client:
        before = client.batches.retrieve(batch.id)
        assert before.status == "in_progress" and before.request_counts.completed < 120
        done = wait_until(client, batch)
        assert done.status == "completed" and done.request_counts.failed == 0
        assert len(answers(client, done.output_file_id)) == 120


def test_what_is_in_no_hurry_leaves_the_way_to_others(start_server):
    """One row in the engine: a caller's request overtakes hundreds of lines."""
    server = start_server("--stub", "--stub-step-seconds", "0.01", "--max-num-seqs", "1")
    with client_of(server) as client:
        slow = [line(f"c{i}", max_tokens=20, ignore_eos=True) for i in range(300)]
        batch = begin(client, *slow)
        wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 1)
        for _ in range(3):
            started = time.monotonic()
            server.text("hello", max_tokens=2)
            assert time.monotonic() - started < 3
        assert client.batches.retrieve(batch.id).status == "in_progress"
        client.batches.cancel(batch.id)
        wait_until(client, batch, "cancelled")


def test_many_batches_at_once_all_end(client):
    made = []
    threads = [
        threading.Thread(target=lambda n=n: made.append(begin(client, line(f"b{n}"))))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    for batch in made:
        assert wait_until(client, batch).status == "completed"


def test_each_tenant_has_its_own_and_a_key_that_is_gone_answers_nothing(start_server, tmp_path):
    path = tmp_path / "keys.json"
    held = {tenant: add(path, tenant) for tenant in ("alice", "bob")}
    server = start_server(
        "--stub", "--stub-step-seconds", "0.01", "--auth-keys", str(path),
        "--trusted-hosts", "127.0.0.1", "--batches-concurrency", "2",
    )  # fmt: skip
    with client_of(server, held["alice"]) as alice, client_of(server, held["bob"]) as bob:
        done = wait_until(alice, begin(alice, line("a")))
        assert done.status == "completed" and done.request_counts.completed == 1
        for ask in (
            lambda: bob.batches.retrieve(done.id),
            lambda: bob.batches.cancel(done.id),
            lambda: bob.files.retrieve(done.output_file_id),
            lambda: bob.files.content(done.output_file_id),
            lambda: bob.files.delete(done.output_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        with pytest.raises(openai.BadRequestError):
            bob.batches.create(
                input_file_id=done.input_file_id, endpoint=CHAT, completion_window="24h"
            )
        assert not [*bob.files.list()] and not [*bob.batches.list()]
        with client_of(server, "wrong") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.files.list()
        slow = begin(bob, *(line(f"c{i}", max_tokens=20, ignore_eos=True) for i in range(60)))
        wait_for(lambda: bob.batches.retrieve(slow.id).request_counts.completed >= 2)
        keys(path, "disable", held["bob"].split("_")[1])
        folder = server.run_dir / "state/batches"

        def facts():
            with closing(sqlite3.connect(folder / "batches.db")) as db:
                (row,) = db.execute("SELECT facts FROM batches WHERE id = ?", (slow.id,))
            return json.loads(row[0])

        wait_for(lambda: facts()["status"] == "failed")
        over = facts()
        assert [fault["code"] for fault in over["errors"]] == ["key_not_in_force"]
        assert over["failed"] == 0 and 2 <= over["completed"] < 60
        answered = (folder / "files" / over["output_file_id"]).read_text().splitlines()
        assert len(answered) == over["completed"]


def test_a_batch_leaves_its_keys_last_place_to_people(start_server, tmp_path):
    path = tmp_path / "keys.json"
    key = add(path, "alice", "--concurrent", "2", "--queued", "0")
    flags = ("--stub", "--stub-step-seconds", "0.01", "--auth-keys", str(path))
    server = start_server(*flags)
    with client_of(server, key) as client:
        lines = (line(f"c{i}", max_tokens=20, ignore_eos=True) for i in range(15))
        batch = begin(client, *lines)
        wait_for(lambda: server.row()["running"])
        chat = line("live", max_tokens=4)["body"]
        for _ in range(15):  # with no queue, none of them would wait for a line's end
            client.chat.completions.create(model="qwen-demo", **chat)
        assert wait_until(client, batch).request_counts.completed == 15
