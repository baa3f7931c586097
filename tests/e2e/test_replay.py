"""Engines die, hang and are restarted under callers who notice nothing, on the stub engine.

Every answer is compared with that of the same request and seed undisturbed. Two interfaces take no
seed; the stub's answer is then its prompt's ids from any of them on, which leaves few texts.
"""

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import requests

from qwenapi.settings.table import etc_dir
from qwenapi.text.tokenizer import Tokenizer
from tests.running_server import RunningServer, quickest, sse_events, wait_for
from workers.worker.stub import Poison

SLOW = ("--stub", "--stub-step-seconds", "0.01")
QUICK = ("--stub", "--stub-step-seconds", "0.004")
EVERY_DIALECT = (*SLOW, "--profile", "all", "--default-max-tokens", "200")
PROMPT = "你好 🙂 hello world, 数据"
TOKENS = 200


@dataclass(frozen=True)
class Ask:
    """A request that some seeds make comparable, and what of its answer does not vary by itself."""

    path: str
    body: dict

    def __call__(self, server):
        with requests.post(server.url + self.path, json=self.body, timeout=90) as answer:
            assert answer.status_code == 200, answer.text
            if not self.body.get("stream"):
                return [_lasting(answer.json())]
            return merged(sse_events(answer.content))


def chat(seed, **fields):
    body = {"model": "qwen-demo", "messages": [{"role": "user", "content": PROMPT}], "seed": seed}
    return Ask("/v1/chat/completions", body | {"max_tokens": TOKENS} | fields)


def completion(seed, **fields):
    body = {"model": "qwen-demo", "prompt": PROMPT, "seed": seed, "max_tokens": TOKENS}
    return Ask("/v1/completions", body | fields)


def poison(kind, seed=1, **fields):
    return chat(seed, logit_bias={"0": int(kind)}, stream=True, **fields)


def _lasting(event):
    return {key: value for key, value in event.items() if key not in ("id", "created")}


def merged(events):
    """Return a stream's texts, log-probabilities and ends by choice, and its other events: how
    tokens are spread over events depends on time.
    """
    texts, logprobs, others = Counter(), {}, []
    for event in events:
        if event == "[DONE]" or "error" in event or not event["choices"]:
            others.append(event if event == "[DONE]" else _lasting(event))
            continue
        for choice in event["choices"]:
            index = choice["index"]
            delta = choice.get("delta", choice)
            texts[index, "text"] = texts[index, "text"] or ""
            texts[index, "text"] += delta.get("content") or choice.get("text") or ""
            for key, value in (choice.get("logprobs") or {}).items():
                if value:
                    logprobs.setdefault((index, key), []).extend(value)
            if choice["finish_reason"]:
                others.append((index, choice["finish_reason"]))
    return [dict(texts), logprobs, *sorted(others, key=str)]


def endings(server, asks):
    """Return all answers to requests made at once: whole, or the error's code."""

    def ask(one):
        answer = server.post(one.path, one.body)
        if answer.status_code != 200:
            return answer.json()["error"]["code"]
        events = sse_events(answer.content)
        return merged(events) if events[-1] == "[DONE]" else events[-1]["error"]["code"]

    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(ask, asks))


def engine_pid(server):
    return server.row()["pid"]


def kill_next(server, pid, when):
    """Kill the engine that follows `pid` once it has so many requests; return its own pid."""
    wait_for(lambda: server.row()["pid"] != pid and server.row()["running"] >= when)
    pid = server.row()["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def counted(server, name):
    for line in server.get("/metrics/prometheus").text.splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    return None


def rotations(tokens):
    """Return what the stub may answer to PROMPT when nobody chooses the seed."""
    tokenizer = Tokenizer(etc_dir() / "models" / "demo")
    ids = tokenizer.encode_chat([{"role": "user", "content": PROMPT}], enable_thinking=False).ids
    stop = tokenizer.encode("<|im_end|>") + tokenizer.encode("<|endoftext|>")
    script = [i for i in ids if i not in stop]
    cycle = script * (tokens // len(script) + 2)
    return {tokenizer.decode(cycle[i : i + tokens]) for i in range(len(script))}


def coder(server):
    form = {"prompt": PROMPT}
    with requests.post(server.url + "/v1/code/chat_stream", data=form, timeout=90) as answer:
        assert answer.status_code == 200
        return answer.content.decode()


def generate(server):
    body = {"prompt": PROMPT, "max_length": TOKENS, "num_return_sequences": 2}
    answer = server.post("/generate", body)
    assert answer.status_code == 200
    return answer.json()["generated_texts"]


def test_fifty_answers_of_every_dialect_survive_their_engine(start_server):
    server = start_server(*EVERY_DIALECT)
    usage = {"stream_options": {"include_usage": True}}
    asks = [
        *(chat(seed, stream=True, **usage) for seed in range(14)),
        *(chat(seed) for seed in range(8)),
        *(completion(seed, stream=True, **usage) for seed in range(10)),
        *(completion(seed, n=2) for seed in range(6)),
    ]
    undisturbed = [ask(server) for ask in asks[:2]]
    with ThreadPoolExecutor(len(asks)) as pool:
        undisturbed += list(pool.map(lambda ask: ask(server), asks[2:]))
    others = [coder] * 6 + [generate] * 6
    pid = engine_pid(server)
    with ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(ask, server) for ask in (*asks, *others)]
        wait_for(lambda: server.row()["running"] == 50)
        os.kill(pid, signal.SIGKILL)
        survived = [answer.result() for answer in answers]
    assert engine_pid(server) != pid, "nothing was disturbed"
    assert survived[: len(asks)] == undisturbed
    expected = rotations(TOKENS)
    assert all(text.endswith(tuple(expected)) for text in survived[len(asks) : len(asks) + 6])
    assert all(set(texts) <= expected for texts in survived[len(asks) + 6 :])
    wait_for(lambda: counted(server, "qwenapi_replays_total") == 50)
    server.wait_until_idle()


def test_an_engine_lost_again_while_it_catches_up_changes_nothing(start_server):
    server = start_server(*SLOW)
    asks = [chat(seed, stream=True) for seed in range(20)]
    undisturbed = endings(server, asks)
    pid = engine_pid(server)
    with ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(endings, server, asks)
        wait_for(lambda: server.row()["running"] == 20)
        os.kill(pid, signal.SIGKILL)
        second = kill_next(server, pid, when=1)
        assert disturbed.result() == undisturbed
    assert engine_pid(server) not in (pid, second)
    assert server.text("everything is as it was", max_tokens=3)


def test_a_stopped_engine_is_killed_and_its_answers_go_on(start_server):
    server = start_server(*SLOW, "--step-timeout", "1")
    asks = [chat(seed, stream=True) for seed in range(6)]
    undisturbed = endings(server, asks)
    with ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(endings, server, asks)
        wait_for(lambda: server.row()["running"] == 6)
        os.kill(engine_pid(server), signal.SIGSTOP)
        assert disturbed.result() == undisturbed
    assert "hangs (no sign of life" in server.log


def test_a_request_that_hangs_engines_inside_a_step_fails_alone(start_server):
    server = start_server(*QUICK, "--step-timeout", "1")
    asks = [chat(seed, stream=True) for seed in range(6)]
    undisturbed = endings(server, asks)
    *answers, guilty = endings(server, [*asks, poison(Poison.HANG)])
    assert answers == undisturbed
    assert guilty == "engine_crash"
    assert "_take_poison" in server.log, "no stack of the hung engine in the log"


@pytest.mark.parametrize(("num_poisons", "num_processes"), [(1, 1), (2, 1), (1, 2)])
def test_poison_among_twenty_fails_alone_and_is_refused_afterwards(
    start_server, num_poisons, num_processes
):
    server = start_server(*QUICK, "--api-server-count", str(num_processes))
    asks = [chat(seed, stream=True) for seed in range(20 - num_poisons)]
    undisturbed = endings(server, asks)
    poisons = [poison(Poison.EXIT, max_tokens=50 + i) for i in range(num_poisons)]
    ended = endings(server, [*asks, *poisons])
    assert ended[: len(asks)] == undisturbed
    assert ended[len(asks) :] == ["engine_crash"] * num_poisons
    deaths = server.row()["starts"] - 1
    # One loss makes nobody suspect, the next all who run; each culprit then ends two when alone.
    assert deaths <= 2 + 3 * num_poisons

    seconds, _ = quickest(lambda: server.post(poisons[0].path, poisons[0].body))
    assert seconds < 0.05
    for _ in range(5 * num_processes):  # whichever process they come to
        answer = server.post(poisons[0].path, poisons[0].body)
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "request_quarantined"
    assert server.row()["starts"] - 1 == deaths
    assert server.text("others are served", max_tokens=3)


def test_poison_that_kills_only_in_company_is_answered_alone(start_server):
    server = start_server(*QUICK)
    asks = [chat(seed, stream=True) for seed in range(8)]
    undisturbed = endings(server, asks)
    *answers, last = endings(server, [*asks, poison(Poison.EXIT_IN_COMPANY, seed=3)])
    assert answers == undisturbed
    assert last == undisturbed[3]


def test_stops_characters_and_choices_are_whole_across_every_crash_point(start_server):
    """Each token is a step of its own: the crash comes in the middle of something."""
    server = start_server("--stub", "--stub-step-seconds", "0.02")
    tail = PROMPT[-4:] * 2
    fields = {"stream": True, "n": 4, "logprobs": True, "top_logprobs": 2}
    asks = [chat(seed, **fields, max_tokens=60 + seed) for seed in range(8)]
    asks += [chat(seed, **fields, stop=[PROMPT[3:11], tail]) for seed in range(8)]
    asks += [completion(seed, stream=True, logprobs=2, stop="world, 数") for seed in range(4)]
    undisturbed = endings(server, asks)
    assert {reason for one in undisturbed for _, reason in map(tuple, one[2:-1])} >= {"stop"}
    for delay in (0.1, 0.35):
        pid = engine_pid(server)
        with ThreadPoolExecutor(1) as pool:
            disturbed = pool.submit(endings, server, asks)
            wait_for(lambda: server.row()["running"] > 8)
            time.sleep(delay)  # the moment is what varies here
            os.kill(pid, signal.SIGKILL)
            assert disturbed.result() == undisturbed
        wait_for(lambda pid=pid: engine_pid(server) != pid)


@pytest.fixture
def halves(tmp_path, start_server):
    """Return what starts a model half, again and again in one place, and a HTTP half beside it."""
    models = []

    def start_model():
        models.append(RunningServer(tmp_path / "model", *SLOW, command="model"))
        return models[-1].wait_until_ready()

    first = start_model()
    http = start_server("--model-run-dir", str(tmp_path / "model"), command="http")
    yield first, start_model, http
    for model in models:
        if model.process.poll() is None:
            model.stop()
        model.close()


def test_a_model_half_restarted_under_its_callers_cuts_no_answer(halves):
    model, start_model, http = halves
    asks = [chat(seed, stream=True) for seed in range(10)]
    undisturbed = endings(http, asks)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(endings, http, asks)
        wait_for(lambda: model.row()["running"] == 10)
        assert model.stop() == 0  # it drains: those ten end by themselves
        assert running.result() == undisturbed
        waiting = pool.submit(endings, http, asks)
        wait_for(lambda: http.get("/readyz").status_code == 503)
        start_model()
        assert waiting.result() == undisturbed
    assert "engine_unavailable" not in http.log


def test_a_model_half_ended_at_once_is_waited_for_with_a_sign_of_life(halves):
    model, start_model, http = halves
    ask = chat(3, stream=True)
    undisturbed = ask(http)
    with requests.post(http.url + ask.path, json=ask.body, stream=True, timeout=60) as answer:
        lines = answer.iter_lines()
        received = [next(lines)]
        wait_for(lambda: model.row()["running"] == 1)
        model.process.terminate()
        wait_for(lambda: "stopping within" in model.log)
        model.process.terminate()
        threading.Timer(17, start_model).start()
        gaps, last = [], time.monotonic()
        for line in lines:
            received.append(line)
            gaps.append(time.monotonic() - last)
            last += gaps[-1]
    assert 14 < max(gaps) < 18, "nothing for too long, or no beat was needed"
    raw = b"\n".join(received).rstrip() + b"\n\n"
    assert merged(sse_events(raw)) == undisturbed


def test_without_a_model_half_new_requests_wait_only_so_long(tmp_path, start_server):
    model = RunningServer(tmp_path / "model", *SLOW, command="model").wait_until_ready()
    flags = ("--model-run-dir", str(tmp_path / "model"), "--queue-timeout", "1.5")
    http = start_server(*flags, "--max-waiting", "3", command="http")
    assert http.text("hello", max_tokens=2)
    assert model.stop() == 0
    wait_for(lambda: http.get("/readyz").status_code == 503)
    started = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: http.chat(f"q{i}"), range(6)))
    assert 1.4 < time.monotonic() - started < 10
    codes = Counter(answer.json()["error"]["code"] for answer in answers)
    assert codes == {"engine_unavailable": 3, "queue_full": 3}
    assert {answer.status_code for answer in answers} == {503}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
