"""The whole server on a real model: gunicorn, the wire, the engine, the embedded demo."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.e2e.test_http_on_stub import raw_request
from tests.running_server import RunningServer, content_of, wait_for

PROMPTS = [
    f"{('你好，请介绍一下自己', 'Tell me about yourself')[i % 2]} {'🙂👨‍👩‍👧'[: i % 5]} #{i}"
    for i in range(64)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--dtype", "float32", "--threads", "2")
    server = RunningServer(tmp_path_factory.mktemp("demo"), *flags)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def test_the_openai_library_streams_a_chat(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="dummy-key") as client:
        fields = {"model": "qwen-demo", "messages": [{"role": "user", "content": "你好"}]}
        with client.chat.completions.create(**fields, max_tokens=20, stream=True, seed=3) as stream:
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        whole = client.chat.completions.create(**fields, max_tokens=20, seed=3)
        assert "".join(pieces) == whole.choices[0].message.content
        assert len([piece for piece in pieces if piece]) > 5


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sees_tokens_one_by_one(server):
    # Long: on a busy machine curl reads several tokens at once.
    fields = '"max_tokens":200,"ignore_eos":true,"stream":true'
    body = '{"messages":[{"role":"user","content":"hi"}],' + fields + "}"
    command = ["curl", "-sN", server.url + "/v1/chat/completions", "-d", body]
    with subprocess.Popen(
        [*command, "-H", "Content-Type: application/json"], stdout=subprocess.PIPE
    ) as curl:
        reads = []
        while piece := os.read(curl.stdout.fileno(), 65536):
            reads.append(piece)
    assert b"".join(reads).endswith(b"data: [DONE]\n\n")
    assert len(reads) > 15


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.95}])
def test_sixty_four_streams_at_once_each_equal_the_same_request_alone(server, fields):
    def ask(i):
        return content_of(
            server.stream(PROMPTS[i], max_tokens=32, seed=i, ignore_eos=True, **fields)
        )

    alone = [ask(i) for i in range(64)]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, range(64)))
    assert together == alone
    assert len(set(alone)) > 50, "the prompts do not matter"
    server.wait_until_idle()


def leave_at_random(server, count):
    chosen = random.Random(0)
    delays = [chosen.random() * 0.3 for _ in range(count)]

    def leave(i):
        body = {"messages": [{"role": "user", "content": PROMPTS[i % 64] * 3}], "max_tokens": 500}
        with raw_request(server, body | {"stream": i % 2 == 0, "n": 1 + i % 3}):
            time.sleep(delays[i])

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(leave, range(count)))
    server.wait_until_idle()
    assert server.text("still there?", max_tokens=3, reasoning_effort="none")


def test_two_hundred_random_disconnects_leave_every_block_free(server):
    leave_at_random(server, 200)


def test_overlapping_steps_and_drafts_answer_the_same(server, start_server):
    """Steps overlap while more than eight run, and drafts are made while fewer do."""
    other = start_server(
        "--dtype", "float32", "--async-scheduling", "on", "--num-speculative-tokens", "4"
    )

    def ask(i):
        return content_of(other.stream(PROMPTS[i], max_tokens=48, seed=i, temperature=0.9))

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    expected = [server.text(PROMPTS[i], max_tokens=48, seed=i, temperature=0.9) for i in range(16)]
    assert answers == expected
    leave_at_random(other, 60)
    other.text("hi", max_tokens=200, temperature=0, ignore_eos=True)  # it repeats itself
    assert other.row()["accepted_tokens"] > 0


def test_a_long_prompt_is_computed_while_others_keep_their_pace(server):
    with ThreadPoolExecutor(2) as pool:
        fields = {"max_tokens": 300, "ignore_eos": True, "skip_special_tokens": False}
        steady = pool.submit(server.stream, "steady", **fields)
        wait_for(lambda: server.row()["running"] == 1)
        before = server.row()["generated_tokens"]
        long = server.chat("long " * 1500, max_tokens=2)
        assert long.status_code == 200
        assert long.json()["usage"]["prompt_tokens"] > 1400
        assert server.row()["generated_tokens"] - before > 2 + 2, "nobody else got a token"
        assert len(steady.result()) > 250


def test_choices_differ_by_seed_and_the_first_is_that_of_a_single_one(server):
    fields = {"max_tokens": 40, "seed": 5, "temperature": 2, "top_k": 0, "top_p": 1}
    three = [c["message"]["content"] for c in server.chat("hello", n=3, **fields).json()["choices"]]
    assert len(set(three)) == 3
    assert three[0] == server.text("hello", **fields)
    assert server.text("hello", **fields | {"seed": 6}) != three[0]


def test_log_probabilities_come_in_both_formats(server):
    chat = server.chat(
        "hello", max_tokens=5, temperature=0, logprobs=True, top_logprobs=3, ignore_eos=True
    )
    entries = chat.json()["choices"][0]["logprobs"]["content"]
    assert len(entries) == 5
    for entry in entries:
        assert len(entry["top_logprobs"]) == 3
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0
    body = {"prompt": "hello", "max_tokens": 4, "temperature": 0, "logprobs": 2, "ignore_eos": True}
    completion = server.post("/v1/completions", body).json()["choices"][0]
    assert len(completion["logprobs"]["tokens"]) == len(completion["logprobs"]["text_offset"]) == 4
    assert completion["logprobs"]["text_offset"][0] == 0


def test_a_repeated_prompt_is_found_in_the_cache_and_gives_the_same_answer(server):
    prompt = "a prompt of more than one block " * 12
    first = server.chat(prompt, max_tokens=16, temperature=0).json()
    second = server.chat(prompt, max_tokens=16, temperature=0).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64
    assert second["choices"] == first["choices"]
    stopped = server.chat(prompt, max_tokens=300, temperature=0, stop=[" ", "a", "e", "的"]).json()
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64


def test_sampling_fields_reach_the_engine(server):
    # a bias of 100 on one id makes it the answer; a ban on it takes it away again
    entry = server.chat("hello", max_tokens=1, temperature=0, logprobs=True, top_logprobs=2).json()
    best, other = (
        e["token"] for e in entry["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    )
    assert best != other
    greedy = server.text("hello", max_tokens=8, temperature=0, ignore_eos=True)
    assert server.text("hello", max_tokens=8, temperature=2, top_k=1, ignore_eos=True) == greedy
    assert server.text("hello", max_tokens=8, temperature=2, top_p=0, ignore_eos=True) == greedy
    assert server.text("hello", max_tokens=8, temperature=2, min_p=1, ignore_eos=True) == greedy
    assert server.text("hello", max_tokens=8, temperature=1e-40, ignore_eos=True) == greedy
    biased = server.text(
        "hello", max_tokens=3, temperature=0, logit_bias={"70": 100}, ignore_eos=True
    )
    assert len(set(biased)) == 1
    penalized = server.text(
        "hello",
        max_tokens=8,
        temperature=0,
        logit_bias={"70": 2},
        frequency_penalty=2,
        ignore_eos=True,
    )
    assert penalized != biased


def python_of(answer):
    """Return the code of an answer: its fenced block, or all of it."""
    found = re.search(r"```(?:python)?\n(.*?)```", answer, re.S)
    return found[1] if found else answer


def test_a_sort_it_writes_sorts(server):
    plainly = {"temperature": 0, "chat_template_kwargs": {"enable_thinking": False}}
    answer = server.text("用 Python 写一个最基础版的冒泡排序算法，只写函数体即可", **plainly)
    scope = {}
    exec(compile(python_of(answer), "answer", "exec"), scope)
    (sort,) = [value for name, value in scope.items() if name != "__builtins__"]
    chosen = random.Random(1)
    numbers = [chosen.randrange(100) for _ in range(30)]
    given = list(numbers)
    assert (sort(given) or given) == sorted(numbers)


def test_a_second_turn_knows_the_first_and_a_stop_string_cuts_what_it_says(server):
    first = {"role": "user", "content": "用 Python 写一个冒泡排序"}
    code = server.post("/v1/chat/completions", {"messages": [first], "temperature": 0}).json()
    code = code["choices"][0]["message"]
    turns = [first, code, {"role": "user", "content": "把上面的代码换成 Java"}]
    java = server.post("/v1/chat/completions", {"messages": turns, "temperature": 0}).json()
    text = java["choices"][0]["message"]["content"]
    assert "int[]" in text and "bubble" in text.lower()
    stop = text[len(text) // 2 : len(text) // 2 + 6]
    asked = {"messages": turns, "temperature": 0, "stop": stop}
    cut = server.post("/v1/chat/completions", asked).json()["choices"][0]
    assert cut["message"]["content"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_an_answer_goes_on_with_the_engine_that_follows_a_killed_one(server):
    server.wait_until_idle()
    fields = {"max_tokens": 200, "seed": 4, "temperature": 0.5, "ignore_eos": True}
    undisturbed = server.chat("hello", **fields).json()
    before = server.row()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.chat, "hello", **fields)
        wait_for(lambda: server.row()["generated_tokens"] >= before["generated_tokens"] + 50)
        os.kill(before["pid"], signal.SIGKILL)
        survived = answer.result().json()
    assert server.row()["pid"] != before["pid"]
    assert survived["usage"]["completion_tokens"] == 200
    assert survived["choices"] == undisturbed["choices"]


def test_a_deterministic_engine_gives_the_same_bits_after_it_was_killed(tmp_path):
    """Log-probabilities show every bit; beside it others run, and not the same ones again."""
    server = RunningServer(tmp_path / "run", "--deterministic", "--num-speculative-tokens", "4")
    fields = {"max_tokens": 120, "seed": 9, "temperature": 1.0, "ignore_eos": True}
    asked = {**fields, "logprobs": True, "top_logprobs": 3}
    try:
        server.wait_until_ready()
        undisturbed = server.chat("写一首关于春天的诗", **asked).json()["choices"]
        before = server.row()
        with ThreadPoolExecutor(3) as pool:
            answer = pool.submit(server.chat, "写一首关于春天的诗", **asked)
            others = [pool.submit(server.text, text, **fields) for text in ("hello", "你好")]
            wait_for(lambda: server.row()["generated_tokens"] >= before["generated_tokens"] + 90)
            os.kill(before["pid"], signal.SIGKILL)
            survived = answer.result().json()["choices"]
            assert all(other.result() for other in others)
        assert server.row()["pid"] != before["pid"]
        assert survived == undisturbed
        assert server.stop() == 0
    finally:
        server.close()
