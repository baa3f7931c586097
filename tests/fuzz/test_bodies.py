"""Bodies of every interface that are nearly valid: answered or refused, within a second."""

import copy
import json
import time

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e.test_control_tokens import FIELDS
from tests.fuzz.mutations import fuzzing, near

SECONDS = 1.0
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CHAT = "/v1/chat/completions"


def named(path, body):
    """Return a body with the model that interfaces with several models ask for."""
    return path, body if "code" in path or path == "/generate" else {"model": "qwen-demo"} | body


MESSAGES = [{"role": "user", "content": "hi"}]
SMALL = {"model": "qwen-demo", "max_tokens": 3}
BODIES = [
    *(named(*field("word")) for name, field in FIELDS.items() if "name" not in name),
    (CHAT, SMALL | {"messages": MESSAGES, "stream": True, "n": 2, "stop": ["x"], "seed": 1,
                    "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "logprobs": True,
                    "top_logprobs": 2, "logit_bias": {"5": 1}, "presence_penalty": 0.1,
                    "stream_options": {"include_usage": True}, "max_completion_tokens": 3}),
    (CHAT, SMALL | {"messages": MESSAGES, "tool_choice": "required", "parallel_tool_calls": False,
                    "response_format": {"type": "json_schema",
                                        "json_schema": {"name": "x", "schema": SCHEMA}}}),
    ("/v1/completions", SMALL | {"prompt": ["a", "b"], "echo": True, "logprobs": 1, "best_of": 2,
                                 "n": 1, "suffix": None, "min_tokens": 1, "ignore_eos": True}),
    ("/v1/completions", SMALL | {"prompt": [[5, 6], [7]], "stream": True, "user": "u"}),
    ("/v1/responses", {"model": "qwen-demo", "input": "hi", "max_output_tokens": 16, "store": True,
                       "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"},
                       "metadata": {"a": "b"}, "previous_response_id": "resp_x"}),
    ("/v1/conversations", {"items": [{"type": "message", "role": "user", "content": "hi"}]}),
    ("/v1/messages", SMALL | {"messages": MESSAGES, "stop_sequences": ["x"], "stream": True,
                              "thinking": {"type": "disabled"}, "tool_choice": {"type": "auto"}}),
    ("/v1/messages/count_tokens", {"model": "qwen-demo", "messages": MESSAGES}),
    ("/v1/batches", {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}),
    ("/v1/embeddings", {"model": "qwen-demo", "input": ["a"], "encoding_format": "base64"}),
    ("/tokenize", {"model": "qwen-demo", "messages": MESSAGES, "return_token_strs": True}),
    ("/tokenize", {"prompt": "a", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [5, 6]}),
    ("/generate", {"prompt": "hi", "max_length": 5, "num_return_sequences": 2, "temperature": 0.5}),
    ("/v1/code/chat_stream", {"prompt": "a", "max_tokens": 3, "conversation_id": "x"}),
]  # fmt: skip
# Bodies that once did what none may do.
CASES: list[tuple[str, object]] = []


def check(server, path, body):
    data = json.dumps(body).encode("utf-8", "surrogatepass")
    headers = {"Content-Type": "application/json"}
    started = time.monotonic()
    answer = requests.post(server.url + path, data=data, headers=headers, timeout=30)
    seconds = time.monotonic() - started
    assert answer.status_code < 500 or answer.status_code == 503, (path, answer.text[:500])
    assert "Traceback" not in answer.text and "object at 0x" not in answer.text, answer.text[:500]
    if answer.status_code >= 400:
        assert isinstance(answer.json(), dict | list), answer.text[:200]
    return seconds


@fuzzing
@given(st.sampled_from(BODIES).flatmap(lambda one: st.tuples(st.just(one[0]), near(one[1]))))
def test_no_body_makes_the_server_fail(fuzzed, drawn):
    # The slowest of one is the machine's; whoever hangs does so again.
    if check(fuzzed, *drawn) > SECONDS:
        assert min(check(fuzzed, *copy.deepcopy(drawn)) for _ in range(3)) <= SECONDS, drawn


@pytest.mark.parametrize("path, body", CASES)
def test_what_was_found_stays_mended(fuzzed, path, body):
    check(fuzzed, path, body)


def test_what_is_changed_was_valid(fuzzed):
    """Else the near misses would all be far."""
    answers = [fuzzed.post(path, body) for path, body in BODIES]
    assert sum(answer.status_code == 200 for answer in answers) > 0.75 * len(BODIES), [
        (path, answer.status_code, answer.text[:200])
        for (path, _), answer in zip(BODIES, answers, strict=True)
        if answer.status_code != 200
    ]
