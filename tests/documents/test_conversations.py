"""Document 000's conversations through HTTP: many turns at once, and whatever is killed under them.

A turn is acknowledged when its caller has read the proper end of its stream.
"""

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests

from tests.running_server import wait_for

STUB = ("--stub", "--profile", "coder", "--queue-timeout", "120")
LONG_TURNS = ("--stub-step-seconds", "0.02", "--default-max-tokens", "60")
PREFACE = re.compile(r"conversation_id:([0-9a-f-]{36})\n---\n")


def turn(server, prompt, conversation_id=None):
    """Return the id and the answer of an acknowledged turn."""
    data = {"prompt": prompt} | ({"conversation_id": conversation_id} if conversation_id else {})
    answer = requests.post(server.url + "/v1/code/chat_stream", data=data, timeout=120)
    assert answer.status_code == 200, answer.text
    text = answer.content.decode()
    if conversation_id:
        return conversation_id, text
    found = PREFACE.match(text)
    return found[1], text[found.end() :]


def history(server, conversation_id):
    """Return the pairs of prompt and answer that are kept."""
    answer = server.get(f"/v1/code/conversations/{conversation_id}")
    assert answer.status_code == 200, answer.text
    messages = answer.json()["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
    contents = [m["content"] for m in messages]
    return list(zip(contents[::2], contents[1::2], strict=True))


@contextlib.contextmanager
def turn_under_way(server, prompt, conversation_id):
    """Begin a turn that will not end by itself; give its stream once text has come."""
    data = {"prompt": prompt, "conversation_id": conversation_id}
    url = server.url + "/v1/code/chat_stream"
    with requests.post(url, data=data, stream=True, timeout=60) as answer:
        pieces = answer.iter_content(chunk_size=None)
        assert next(pieces)
        yield pieces


def kill(*processes):
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)


def test_fifty_turns_at_once_make_one_serial_history(start_server):
    server = start_server(*STUB, "--stub-step-seconds", "0.002", "--default-max-tokens", "8")
    conversation_id, first = turn(server, "begin")
    prompts = [f"turn {i}" for i in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda prompt: turn(server, prompt, conversation_id)[1], prompts))
    kept = history(server, conversation_id)
    assert kept[0] == ("begin", first)
    assert sorted(kept[1:]) == sorted(zip(prompts, answers, strict=True))


def test_a_killed_http_worker_costs_the_turn_under_way_and_nothing_else(start_server):
    server = start_server(*STUB, *LONG_TURNS)
    conversation_id, answer = turn(server, "begin")
    (worker,) = server.http_workers()
    with turn_under_way(server, "never told", conversation_id) as pieces:
        kill(worker)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(pieces)
    wait_for(lambda: {found.pid for found in server.http_workers()} - {worker.pid})
    assert history(server, conversation_id) == [("begin", answer)]
    # what the dead worker had leased is free again before anybody's patience is over
    _, again = turn(server, "again", conversation_id)
    assert history(server, conversation_id) == [("begin", answer), ("again", again)]


def test_a_killed_server_knows_every_acknowledged_turn_when_it_is_back(tmp_path, start_server):
    state = ("--state-dir", str(tmp_path / "kept"))
    server = start_server(*STUB, *LONG_TURNS, *state)
    told = dict(turn(server, f"begin {i}") for i in range(3))
    with contextlib.ExitStack() as streams:
        for conversation_id in told:
            streams.enter_context(turn_under_way(server, "never told", conversation_id))
        kill(*server.tree(), psutil.Process(server.process.pid))
    server = start_server(*STUB, *LONG_TURNS, *state)
    for i, (conversation_id, answer) in enumerate(told.items()):
        assert history(server, conversation_id) == [(f"begin {i}", answer)]


def test_of_turns_that_end_while_the_server_is_killed_no_acknowledged_one_is_lost(
    tmp_path, start_server
):
    state = ("--state-dir", str(tmp_path / "kept"))
    short = ("--stub-step-seconds", "0.001", "--default-max-tokens", "4")
    server = start_server(*STUB, *short, *state)
    first_turns = [turn(server, "begin") for _ in range(4)]
    told = {conversation_id: [("begin", text)] for conversation_id, text in first_turns}

    def talk(conversation_id):
        with contextlib.suppress(requests.RequestException):
            for number in range(10_000):
                _, text = turn(server, str(number), conversation_id)
                told[conversation_id].append((str(number), text))

    with ThreadPoolExecutor(len(told)) as pool:
        talks = [pool.submit(talk, conversation_id) for conversation_id in told]
        wait_for(lambda: sum(map(len, told.values())) >= 60)
        kill(*server.tree(), psutil.Process(server.process.pid))
        for done in talks:
            done.result(timeout=30)
    server = start_server(*STUB, *short, *state)
    for conversation_id, acknowledged in told.items():
        kept = history(server, conversation_id)
        assert kept[: len(acknowledged)] == acknowledged
        # the last one may have been kept though its caller was not told any more
        assert [prompt for prompt, _ in kept[len(acknowledged) :]] in (
            [],
            [str(len(acknowledged) - 1)],
        )


def test_a_history_longer_than_the_model_is_kept_whole_and_told_in_part(start_server):
    short = ("--max-model-len", "200", "--default-max-tokens", "30")
    server = start_server(*STUB, "--stub-step-seconds", "0.001", *short)
    conversation_id, text = turn(server, "the first turn")
    told = [("the first turn", text)]
    for number in range(12):
        _, text = turn(server, f"turn {number}", conversation_id)
        told.append((f"turn {number}", text))
    assert history(server, conversation_id) == told
