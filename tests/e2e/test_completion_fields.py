"""Fields of vLLM's completions and chats, through a whole server."""

import pytest
import requests

from tests.running_server import RunningServer, sse_events

IDS = list(range(40, 60))
CHAT = {"messages": [{"role": "user", "content": "ab cd 你好"}]}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    server = RunningServer(tmp_path_factory.mktemp("demo"), "--dtype", "float32", "--threads", "2")
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def complete(server, path="completions", **body):
    answer = requests.post(f"{server.url}/v1/{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(server, path="completions", **body):
    answer = requests.post(f"{server.url}/v1/{path}", json=body, timeout=120)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["param"]


def streamed(server, path="completions", **body):
    answer = requests.post(f"{server.url}/v1/{path}", json=body | {"stream": True}, timeout=60)
    *events, done = sse_events(answer.content)
    assert done == "[DONE]"
    return events


def test_token_ids_are_returned_whole_and_streamed(stub_server):
    fields = {
        "prompt": [IDS, IDS[:5]],
        "n": 2,
        "max_tokens": 7,
        "seed": 3,
        "return_token_ids": True,
    }
    whole = complete(stub_server, **fields)["choices"]
    assert [choice["prompt_token_ids"] for choice in whole] == [IDS, IDS, IDS[:5], IDS[:5]]
    assert [choice["token_ids"] for choice in whole[:2]] == [IDS[3:10], IDS[4:11]]
    prompts, outputs = {}, {i: [] for i in range(4)}
    for event in streamed(stub_server, **fields):
        for choice in event["choices"]:
            if "prompt_token_ids" in choice:
                assert choice["index"] not in prompts
                prompts[choice["index"]] = choice["prompt_token_ids"]
            outputs[choice["index"]] += choice.get("token_ids", [])
    assert [prompts[i] for i in range(4)] == [choice["prompt_token_ids"] for choice in whole]
    assert [outputs[i] for i in range(4)] == [choice["token_ids"] for choice in whole]
    assert "token_ids" not in complete(stub_server, prompt=IDS, max_tokens=1)["choices"][0]


def test_a_chats_token_ids_are_those_of_its_template(demo):
    fields = CHAT | {"max_tokens": 30, "temperature": 0, "return_token_ids": True}
    whole = complete(demo, "chat/completions", **fields)
    events = streamed(demo, "chat/completions", **fields)
    assert [e["prompt_token_ids"] for e in events if "prompt_token_ids" in e] == [
        whole["prompt_token_ids"]
    ]
    ids = [id_ for e in events for c in e["choices"] for id_ in c.get("token_ids", [])]
    assert ids == whole["choices"][0]["token_ids"]
    assert len(ids) == whole["usage"]["completion_tokens"]
    assert len(whole["prompt_token_ids"]) == whole["usage"]["prompt_tokens"]


def test_the_text_may_include_its_stop(stub_server):
    fields = {"prompt": "one two three four", "seed": 0, "max_tokens": 40, "stop": [" three"]}
    assert complete(stub_server, **fields)["choices"][0]["text"] == "one two"
    fields["include_stop_str_in_output"] = True
    assert complete(stub_server, **fields)["choices"][0]["text"] == "one two three"
    pieces = [c["text"] for e in streamed(stub_server, **fields) for c in e["choices"]]
    assert "".join(pieces) == "one two three"
    by_id = {"prompt": IDS, "seed": 0, "max_tokens": 9, "stop_token_ids": [IDS[4]]}
    by_id |= {"return_token_ids": True, "include_stop_str_in_output": True}
    choice = complete(stub_server, **by_id)["choices"][0]
    assert choice["token_ids"] == IDS[:5] and choice["finish_reason"] == "stop"
    texts = [complete(stub_server, prompt=[id_], max_tokens=1)["choices"][0]["text"] for id_ in IDS]
    assert choice["text"] == "".join(texts[:5])


def test_a_prompt_is_cut_to_its_end(stub_server):
    fields = {"prompt": IDS, "max_tokens": 2, "return_token_ids": True}
    cut = complete(stub_server, truncate_prompt_tokens=6, **fields)
    assert cut["choices"][0]["prompt_token_ids"] == IDS[-6:]
    assert cut["usage"]["prompt_tokens"] == 6
    long = {"prompt": IDS * 1000, "max_tokens": 3, "seed": 0, "truncate_prompt_tokens": -1}
    assert complete(stub_server, **long)["usage"]["completion_tokens"] == 3
    chat = complete(stub_server, "chat/completions", truncate_prompt_tokens=4, max_tokens=1, **CHAT)
    assert chat["usage"]["prompt_tokens"] == 4


def test_the_callers_request_id_is_the_answers(stub_server):
    assert complete(stub_server, prompt="x", max_tokens=1, request_id="run-7")["id"] == "cmpl-run-7"
    chat = streamed(stub_server, "chat/completions", max_tokens=1, request_id="run-7", **CHAT)
    assert {event["id"] for event in chat} == {"chatcmpl-run-7"}


def test_many_prompts_and_many_choices_are_answered_in_order(start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.001", "--max-waiting", "300")
    prompts = [[40 + i % 60, 100 + i % 50] for i in range(2048)]
    whole = complete(server, prompt=prompts, max_tokens=2, seed=0, return_token_ids=True)
    assert [choice["token_ids"] for choice in whole["choices"]] == prompts
    assert [choice["index"] for choice in whole["choices"]] == list(range(2048))
    assert whole["usage"]["prompt_tokens"] == 4096
    many = complete(server, prompt=IDS, n=128, max_tokens=1, seed=0, return_token_ids=True)
    assert [choice["token_ids"][0] for choice in many["choices"]] == [
        IDS[i % 20] for i in range(128)
    ]


def test_allowed_and_bad_words_bound_the_answer(demo):
    free = CHAT | {"max_tokens": 24, "temperature": 0, "return_token_ids": True}
    first = complete(demo, "chat/completions", **free)["choices"][0]["token_ids"]
    allowed = sorted(set(first))[:4]
    kept = complete(demo, "chat/completions", allowed_token_ids=allowed, **free)
    assert set(kept["choices"][0]["token_ids"]) <= set(allowed)
    text = complete(demo, prompt="The ", max_tokens=24, temperature=0)["choices"][0]["text"]
    word = max(text.split(), key=len)
    bad = complete(demo, prompt="The ", max_tokens=24, temperature=0, bad_words=[word])
    assert word in text and word not in bad["choices"][0]["text"]
    assert refusal(demo, prompt="x", allowed_token_ids=[10**6]) == "allowed_token_ids"


def test_a_salt_parts_the_prompts_cache(demo):
    fields = {"prompt": IDS * 8, "max_tokens": 1}

    def cached(**more):
        return complete(demo, **fields, **more)["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(cache_salt="mine") == 0 and cached(cache_salt="mine") > 0
    assert cached(cache_salt="yours") == 0 and cached() == 0
