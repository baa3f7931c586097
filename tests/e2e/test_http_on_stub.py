"""The HTTP half through real gunicorn, against the stub engine."""

import http.client
import json
import re
import selectors
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests

from tests.running_server import content_of, quickest, sse_events, wait_for

MESSAGES = [{"role": "user", "content": "你好，世界 🙂👨‍👩‍👧 ok"}]


@pytest.fixture
def client(stub_server):
    with openai.OpenAI(
        base_url=stub_server.url + "/v1", api_key="dummy-key", max_retries=0
    ) as client:
        yield client


def raw_request(server, body, path="/v1/chat/completions", headers=(), receive_buffer=None):
    """Return a socket on which the request has been sent and nothing been read."""
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(30)
    sock.connect((host, int(port)))
    payload = json.dumps(body).encode()
    head = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
    ]
    sock.sendall("\r\n".join([*head, *headers, "", ""]).encode() + payload)
    return sock


def test_the_openai_library_chats_whole_and_streamed_and_gets_the_same(client):
    fields = {"model": "qwen-demo", "messages": MESSAGES, "max_tokens": 40, "seed": 7}
    whole = client.chat.completions.create(**fields)
    with client.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, **fields
    ) as stream:
        chunks = list(stream)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens == 40
    assert chunks[0].choices[0].delta.role == "assistant" and not chunks[0].choices[0].delta.content
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert "🙂" in text and "\N{REPLACEMENT CHARACTER}" not in text.rstrip(
        "\N{REPLACEMENT CHARACTER}"
    )


def test_the_openai_library_completes_several_prompts_with_several_choices(client):
    whole = client.completions.create(
        model="qwen-demo", prompt=["ab cd", "你好 吗"], n=2, max_tokens=6, seed=1
    )
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    with client.completions.create(
        model="qwen-demo", prompt=["ab cd", "你好 吗"], n=2, max_tokens=6, seed=1, stream=True
    ) as stream:
        texts = [""] * 4
        for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_the_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["qwen-demo"]


@pytest.mark.timing
def test_tokens_arrive_one_by_one(stub_server):
    arrivals = []
    with raw_request(
        stub_server, {"messages": MESSAGES, "stream": True, "max_tokens": 150}
    ) as sock:
        received = b""
        while b"[DONE]" not in received:
            received += sock.recv(65536)
            arrivals.append(time.monotonic())
    assert len(arrivals) >= 15, "the stream came in a few large pieces"
    assert arrivals[-1] - arrivals[0] > 0.5


def test_a_stop_string_ends_the_text_before_it_and_frees_the_engine(stub_server):
    whole = stub_server.text("one two three four five", max_tokens=60, seed=0)
    assert "three" in whole
    answer = stub_server.chat(
        "one two three four five", max_tokens=60, seed=0, stop=["nowhere", "three"]
    ).json()
    assert answer["choices"][0]["message"]["content"] == whole[: whole.index("three")]
    assert answer["choices"][0]["finish_reason"] == "stop"
    events = stub_server.stream("one two three four five", max_tokens=60, seed=0, stop="three")
    assert content_of(events) == whole[: whole.index("three")]
    stub_server.wait_until_idle()


def test_tokens_behind_a_stop_string_are_not_counted(stub_server):
    fields = {"max_tokens": 200, "seed": 0, "stop": "three"}
    usages = [stub_server.chat("one two three four", **fields).json()["usage"] for _ in range(10)]
    assert len({usage["completion_tokens"] for usage in usages}) == 1
    assert usages[0]["completion_tokens"] < 100


def test_more_choices_than_the_engine_has_rows_are_the_callers_fault(start_server):
    server = start_server("--stub", "--max-num-seqs", "4")
    answer = server.chat("hi", n=8, max_tokens=2)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "n"
    assert server.chat("hi", n=4, max_tokens=2).status_code == 200


def test_one_choice_may_stop_while_the_others_go_on(stub_server):
    fields = {"max_tokens": 24, "seed": 0, "n": 3}
    plain = [
        c["message"]["content"] for c in stub_server.chat("ab cd ef gh", **fields).json()["choices"]
    ]
    stopped = stub_server.chat("ab cd ef gh", stop="ef", **fields).json()["choices"]
    for before, after in zip(plain, stopped, strict=True):
        assert after["message"]["content"] == before.split("ef")[0]
    stub_server.wait_until_idle()


def test_sixty_four_streams_at_once_each_equal_the_same_request_alone(stub_server):
    prompts = [f"第{i}个问题：{'🙂' * (i % 5)} number {i}" for i in range(64)]
    alone = [stub_server.text(prompt, max_tokens=16, seed=i) for i, prompt in enumerate(prompts)]
    with ThreadPoolExecutor(64) as pool:
        together = list(
            pool.map(
                lambda i: content_of(stub_server.stream(prompts[i], max_tokens=16, seed=i)),
                range(64),
            )
        )
    assert together == alone


@pytest.mark.timing
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_noticed_within_a_tenth_of_a_second(stub_server, stream):
    def leave():
        body = {"messages": MESSAGES, "stream": stream, "max_tokens": 4000}
        with raw_request(stub_server, body):
            wait_for(lambda: stub_server.row()["running"] == 1)
        left = time.monotonic()
        wait_for(lambda: stub_server.row()["running"] == 0, 5)
        return time.monotonic() - left

    assert min(leave() for _ in range(3)) < 0.1


@pytest.mark.timing
@pytest.mark.parametrize("stray", [b"\r\n", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_bytes_behind_a_request_do_not_hide_that_its_client_left(stub_server, stray):
    def leave():
        with raw_request(stub_server, {"messages": MESSAGES, "max_tokens": 4000}) as sock:
            sock.sendall(stray)
            wait_for(lambda: stub_server.row()["running"] == 1)
            time.sleep(0.2)
            assert stub_server.row()["running"] == 1, "taken for gone"
        left = time.monotonic()
        wait_for(lambda: stub_server.row()["running"] == 0, 5)
        return time.monotonic() - left

    assert min(leave() for _ in range(3)) < 0.1


@pytest.mark.timing
def test_a_queued_client_that_leaves_is_noticed_too(start_server):
    server = start_server(
        "--stub", "--stub-step-seconds", "0.01", "--max-running", "1", "--max-waiting", "5"
    )
    with raw_request(server, {"messages": MESSAGES, "max_tokens": 4000}):
        wait_for(lambda: server.row()["running"] == 1)

        def leave():
            with raw_request(server, {"messages": MESSAGES, "max_tokens": 4000}):
                wait_for(lambda: server.row()["waiting"] == 1)
            left = time.monotonic()
            wait_for(lambda: server.row()["waiting"] == 0, 5)
            return time.monotonic() - left

        assert min(leave() for _ in range(3)) < 0.1
        assert server.row()["running"] == 1
    server.wait_until_idle()


def test_two_hundred_random_disconnects_leave_nothing_behind(stub_server):
    def leave(i):
        with raw_request(
            stub_server, {"messages": MESSAGES, "stream": i % 2 == 0, "max_tokens": 2000}
        ) as sock:
            if i % 3:
                time.sleep(0.003 * (i % 50))
            if i % 5 == 0:
                sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )  # reset, no farewell
            elif i % 7 == 0:
                sock.shutdown(socket.SHUT_WR)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(leave, range(200)))
    stub_server.wait_until_idle(10)
    assert stub_server.text("still there", max_tokens=3)


@pytest.mark.timing
def test_three_run_ten_wait_and_fifty_one_are_told_at_once(start_server):
    server = start_server(
        "--stub", "--stub-step-seconds", "0.05", "--max-running", "3", "--max-waiting", "10"
    )
    started = time.monotonic()
    sockets = [raw_request(server, {"messages": MESSAGES, "max_tokens": 40}) for _ in range(64)]
    sent = time.monotonic() - started
    answers = answers_of(sockets)
    refused = [
        (at - started, head, body) for at, head, body in answers if " 503 " in head.splitlines()[0]
    ]
    assert sum(" 200 " in head.splitlines()[0] for _, head, _ in answers) == 13
    assert len(refused) == 51
    for _, head, body in refused:
        assert 1 <= int(re.search(r"Retry-After: (\d+)", head)[1]) <= 120
        assert json.loads(body)["error"]["code"] == "queue_full"
    # An answer takes 2 s; a refusal waits for none, though 64 are sent and read on the same cores.
    delays = sorted(seconds - sent for seconds, _, _ in refused)
    print(f"refused after {delays[25]:.3f} s in the median, {delays[-1]:.3f} s at the latest")
    assert delays[25] < 0.5
    assert delays[-1] < 1


def answers_of(sockets):
    """Return (time of the last byte, head, body) of each socket's answer, in order of arrival."""
    answers, received = [], {sock: b"" for sock in sockets}
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ)
        while len(answers) < len(sockets):
            for key, _ in selector.select(30):
                sock = key.fileobj
                received[sock] += sock.recv(65536)
                head, _, body = received[sock].decode().partition("\r\n\r\n")
                length = re.search(r"Content-Length: (\d+)", head)
                if length and len(body.encode()) == int(length[1]):
                    answers.append((time.monotonic(), head, body))
                    selector.unregister(sock)
                    sock.close()
    return answers


class server_busy:
    """Hold all thirteen places of a server while inside."""

    def __init__(self, server):
        self._server = server

    def __enter__(self):
        body = {"messages": MESSAGES, "max_tokens": 4000}
        self._sockets = [raw_request(self._server, body) for _ in range(13)]
        wait_for(lambda: self._server.row()["running"] == 3 and self._server.row()["waiting"] == 10)

    def __exit__(self, *_):
        for sock in self._sockets:
            sock.close()


BAD_REQUESTS = [
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"temperature": -1}, 400, "temperature"),
    ({"n": 1000}, 400, "n"),
    ({"model": "gpt-4"}, 404, "model"),
    ({"messages": []}, 400, "messages"),
    ({"mirostat": 2}, 400, "mirostat"),
    ({"top_p": "0.5"}, 400, "top_p"),
    ({"seed": True}, 400, "seed"),
    ({"logit_bias": {"99999999": 1}}, 400, "logit_bias"),
    ({"stop": [""]}, 400, "stop"),
    ({"tools": [{"type": "function"}]}, 400, "tools[0].function"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages[0].content[0].image_url",
    ),
]


@pytest.mark.parametrize(("fields", "status", "param"), BAD_REQUESTS)
def test_a_bad_field_is_named_quickly_and_costs_the_engine_nothing(
    stub_server, fields, status, param
):
    stub_server.wait_until_idle()
    steps = stub_server.row()["step"]
    asked = {"model": "qwen-demo", "messages": MESSAGES} | fields
    seconds, answer = quickest(lambda: stub_server.post("/v1/chat/completions", asked))
    assert seconds < 0.05
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert param.split("[")[0] in error["message"] or "not served" in error["message"]
    assert stub_server.row()["step"] == steps


BAD_BODIES = [
    (b"{", "application/json", 400),
    (b"", "application/json", 400),
    (b"[]", "application/json", 400),
    (b'{"messages": NaN}', "application/json", 400),
    (b'{"n": 1, "n": 2}', "application/json", 400),
    (b"[" * 200_000, "application/json", 400),
    (b"\xff\xfe{\0}\0", "application/json", 400),
    (b'{"messages": "\\ud800"}', "application/json", 400),
    (b"a=b", "application/x-www-form-urlencoded", 415),
    (b"x" * 5_000_000, "application/json", 413),
]


@pytest.mark.parametrize(("body", "content_type", "status"), BAD_BODIES)
def test_a_bad_body_is_refused_quickly_in_openais_words(stub_server, body, content_type, status):
    def ask():
        url = stub_server.url + "/v1/chat/completions"
        return requests.post(url, data=body, headers={"Content-Type": content_type}, timeout=10)

    seconds, answer = quickest(ask)
    assert seconds < (0.5 if status == 413 else 0.05)  # five megabytes take a while to send
    assert answer.status_code == status and answer.headers["X-Request-Id"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_what_a_request_says_too_much_is_named_in_the_answer_and_counted_in_the_log(start_server):
    server = start_server("--stub", "--log-format", "json")
    answer = server.chat("hi", max_tokens=2, no_such_field=1, metadata={"a": 1}, stream=True)
    assert answer.status_code == 200
    assert answer.headers["X-Ignored"] == "no_such_field, metadata"
    wait_for(lambda: '"ignored_fields":2' in server.log)


def test_a_seed_of_minus_one_gives_another_answer_each_time(stub_server):
    def texts(**seed):
        asked = {"prompt": "a b c d e f g h i j k l m n o p q r", "max_tokens": 4, **seed}
        answers = (stub_server.post("/v1/completions", asked).json() for _ in range(8))
        return {answer["choices"][0]["text"] for answer in answers}

    assert len(texts(seed=-1)) > 1 and len(texts()) > 1
    assert len(texts(seed=-2)) == len(texts(seed=0)) == 1


def test_usage_is_shown_all_along_where_a_meter_asks_for_it(stub_server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = stub_server.stream("one two", max_tokens=9, stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts[0] == 0 and counts[-1] == 9 and counts == sorted(counts) and len(set(counts)) > 4
    plain = stub_server.stream("one two", max_tokens=9, stream_options={"include_usage": True})
    assert [event["usage"] for event in plain[:-1]] == [None] * (len(plain) - 1)


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_are_places_in_a_text_without_special_tokens(stub_server, stream):
    body = {"prompt": "<|im_start|>" * 4, "max_tokens": 8, "logprobs": 0, "stream": stream}

    def offsets(**fields):
        answer = stub_server.post("/v1/completions", body | fields)
        events = sse_events(answer.content)[:-1] if stream else [answer.json()]
        found = [choice["logprobs"] for event in events for choice in event["choices"]]
        return [offset for one in found if one for offset in one["text_offset"]]

    assert offsets() == [0] * 8
    assert offsets(skip_special_tokens=False) == [12 * i for i in range(8)]


def test_a_prompt_is_as_long_as_the_context_and_the_body_allow(start_server):
    server = start_server("--stub", "--max-model-len", "131072")
    ids = server.post("/v1/completions", {"prompt": [97] * 100_500, "max_tokens": 2})
    assert ids.status_code == 200 and ids.json()["usage"]["prompt_tokens"] == 100_500
    several = server.post("/v1/completions", {"prompt": [[97] * 60_000] * 2, "max_tokens": 1})
    assert several.status_code == 200
    text = server.post("/v1/completions", {"prompt": "word " * 500_000, "max_tokens": 1})
    assert text.status_code == 400 and text.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 131072 tokens" in text.json()["error"]["message"]


def test_without_max_tokens_a_chat_has_the_room_left_and_a_completion_sixteen(start_server):
    server = start_server("--stub", "--max-model-len", "6000")
    usage = server.chat("hello", ignore_eos=True).json()["usage"]
    assert usage["total_tokens"] == 6000
    asked = {"prompt": "hello world", "ignore_eos": True}
    assert server.post("/v1/completions", asked).json()["usage"]["completion_tokens"] == 16
    server = start_server("--stub", "--default-max-tokens", "5")
    assert server.chat("hello").json()["usage"]["completion_tokens"] == 5
    assert server.post("/v1/completions", asked).json()["usage"]["completion_tokens"] == 5


def test_a_prompt_that_does_not_fit_is_refused_and_a_long_answer_is_cut_to_the_room(start_server):
    server = start_server("--stub", "--max-model-len", "300")
    answer = server.chat("word " * 300)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    answer = server.chat("hello", max_tokens=100_000)
    assert answer.status_code == 200
    room = 300 - answer.json()["usage"]["prompt_tokens"]
    assert answer.headers["X-Clamped"] == f"max_tokens={room}"
    assert answer.json()["usage"]["completion_tokens"] == room
    assert answer.json()["choices"][0]["finish_reason"] == "length"


def test_what_is_no_http_is_refused_in_json_without_an_echo(stub_server):
    host, port = stub_server.url.removeprefix("http://").split(":")
    long_line = b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    many = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(200)) + b"\r\n"
    for raw, status in ((long_line, 414), (many, 431), (b"<script>alert(1)</script>\r\n\r\n", 400)):
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(raw)
            received = b""
            while piece := sock.recv(65536):
                received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status) and b"application/json" in head
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert b"script" not in received
    assert stub_server.get("//v1//models/").status_code == 200


def test_unknown_addresses_and_methods_are_answered_in_openais_words(stub_server):
    assert stub_server.get("/nowhere").json()["error"]["type"] == "invalid_request_error"
    answer = stub_server.get("/v1/chat/completions")
    assert answer.status_code == 405 and "POST" in answer.headers["Allow"]


def test_a_request_id_is_kept_when_it_is_one_and_replaced_when_it_is_not(stub_server):
    body = {"messages": MESSAGES, "max_tokens": 1}
    kept = stub_server.post("/v1/chat/completions", body, headers={"X-Request-Id": "my-id.1"})
    assert kept.headers["X-Request-Id"] == "my-id.1"
    replaced = stub_server.post("/v1/chat/completions", body, headers={"X-Request-Id": "a b\tc"})
    assert len(replaced.headers["X-Request-Id"]) == 32


def test_one_log_line_a_request_without_its_text(start_server):
    server = start_server("--stub")
    server.chat("a secret canary", max_tokens=2, user="canary user")
    wait_for(lambda: "completion_tokens=2" in server.log)
    server.stop()
    assert "canary" not in server.log
    assert sum("/v1/chat/completions" in line for line in server.log.splitlines()) == 1


def test_a_silent_stream_gets_beats_that_are_plain_events(start_server):
    server = start_server("--stub", "--stub-step-seconds", "17", "--step-timeout", "60")
    raw = server.chat("hi", max_tokens=2, stream=True).content
    deltas = [event["choices"][0]["delta"] for event in sse_events(raw)[:-1]]
    assert {} in deltas[1:-1], "no beat in 17 seconds of silence"
    assert b"\n:" not in raw and b"event:" not in raw and b"id:" not in raw.replace(b'"id":', b"")


def test_tokens_without_text_are_silence_too(start_server):
    server = start_server("--stub", "--stub-step-seconds", "1", "--step-timeout", "60")
    # the stub repeats the prompt, and of this one nothing is left when special tokens are skipped
    body = {"prompt": "<|im_start|>" * 4, "max_tokens": 18, "stream": True}
    raw = server.post("/v1/completions", body).content
    texts = [choice["text"] for event in sse_events(raw)[:-1] for choice in event["choices"]]
    assert texts == ["", ""], "one beat and the end"


@pytest.mark.timing
def test_a_reader_that_does_not_read_holds_up_nobody_and_is_left_in_the_end(start_server):
    server = start_server("--stub", "--socket-timeout", "2")
    body = {"messages": MESSAGES, "stream": True, "max_tokens": 8000, "n": 8}
    with raw_request(server, body, receive_buffer=4096) as lazy:
        wait_for(lambda: server.row()["generated_tokens"] > 1000)
        started = time.monotonic()
        assert server.text("hello", max_tokens=5)
        assert time.monotonic() - started < 1
        wait_for(lambda: server.log.count("/v1/chat/completions") == 2, 20)
        time.sleep(0.1)
        received = 0
        while piece := lazy.recv(1 << 20):
            received += len(piece)
            assert b"[DONE]" not in piece
    assert received < 64_000 * 200
    server.wait_until_idle()


def test_a_body_that_does_not_come_is_not_waited_for(start_server):
    server = start_server("--stub", "--socket-timeout", "1")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
        sock.sendall(f"{head}\r\nContent-Length: 100\r\n\r\n{{".encode())
        started = time.monotonic()
        received = b""
        while piece := sock.recv(65536):
            received += piece
        assert time.monotonic() - started < 5
    assert received.startswith(b"HTTP/1.1 400 ") and b"Content-Length" in received
    assert "Traceback" not in server.log


def test_requests_of_one_connection_follow_each_other(stub_server):
    connection = http.client.HTTPConnection(stub_server.url.removeprefix("http://"), timeout=10)
    for stream in (False, True, False):
        body = json.dumps({"messages": MESSAGES, "max_tokens": 3, "stream": stream})
        connection.request(
            "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read()
    connection.close()


def test_many_threads_of_many_kinds_at_once(stub_server):
    failures = []

    def work(i):
        try:
            if i % 4 == 0:
                assert stub_server.post("/v1/chat/completions", {"messages": 5}).status_code == 400
            elif i % 4 == 1:
                assert stub_server.stream(f"流 {i}", max_tokens=10)
            elif i % 4 == 2:
                assert stub_server.get("/health").status_code == 200
            else:
                raw_request(stub_server, {"messages": MESSAGES, "max_tokens": 500}).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    stub_server.wait_until_idle()


@pytest.mark.timing
def test_a_megabyte_to_tokenize_does_not_hold_up_the_other_streams(start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.02")

    def gap_p99(seconds):
        body = {"messages": MESSAGES, "stream": True, "max_tokens": 8000}
        with raw_request(server, body) as sock:
            arrivals, end = [], time.monotonic() + seconds
            while time.monotonic() < end:
                sock.recv(65536)
                arrivals.append(time.monotonic())
        gaps = sorted(b - a for a, b in zip(arrivals, arrivals[1:], strict=False))
        return gaps[int(len(gaps) * 0.99)]

    alone = gap_p99(3)
    is_over = threading.Event()

    def post():
        while not is_over.is_set():
            assert server.chat("你好 world 🙂 " * 50_000).status_code == 400

    thread = threading.Thread(target=post)
    thread.start()
    beside = gap_p99(3)
    is_over.set()
    thread.join()
    assert beside < 2 * alone
