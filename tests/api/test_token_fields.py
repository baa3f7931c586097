"""Fields of tokens that vLLM has and OpenAI has not."""

from typing import Any

import pytest

from qwenapi.api.openai.schemas import ChatSchema, CompletionSchema
from qwenapi.api.openai.token_fields import MAX_ALLOWED_TOKENS, MAX_BAD_WORDS, MAX_PROMPTS
from qwenapi.errors import BadRequest
from qwenapi.http.schemas import load_request

BODIES = [
    (ChatSchema(), {"messages": [{"role": "user", "content": "hi"}]}),
    (CompletionSchema(), {"prompt": "hi"}),
]
GOOD: dict[str, list[Any]] = {
    "allowed_token_ids": [[], [0, 7], [1] * MAX_ALLOWED_TOKENS],
    "bad_words": [[], ["no"], [" never", "不"], ["x"] * MAX_BAD_WORDS],
    "include_stop_str_in_output": [True, False],
    "return_token_ids": [True, False],
    "truncate_prompt_tokens": [-1, 1, 4096],
    "cache_salt": ["s", "盐" * 256],
    "request_id": ["a", "run-7:3.b_" * 12],
    "n": [1, 128],
}
BAD: dict[str, list[Any]] = {
    "allowed_token_ids": ["1", [-1], [1.0], [True], [2**31], [1] * (MAX_ALLOWED_TOKENS + 1), {}],
    "bad_words": ["no", [""], [" "], [1], ["x" * 257], ["x"] * (MAX_BAD_WORDS + 1), {}],
    "include_stop_str_in_output": [1, "true", []],
    "return_token_ids": [1, "true", []],
    "truncate_prompt_tokens": [0, -2, 1.0, "5", True],
    "cache_salt": ["", "s" * 257, 1, ["s"]],
    "request_id": ["", "a b", "a\n", "ä", "a" * 129, 1, "a/b"],
    "n": [0, 129],
}


@pytest.mark.parametrize(("schema", "body"), BODIES, ids=["chat", "completion"])
@pytest.mark.parametrize("name", GOOD)
def test_good_values_arrive_as_they_are_and_others_are_refused_by_name(
    name: str, schema: Any, body: dict[str, Any]
) -> None:
    for value in GOOD[name]:
        got = getattr(load_request(schema, body | {name: value}), name)
        assert got == (tuple(value) if isinstance(value, list) else value)
    for value in BAD[name]:
        with pytest.raises(BadRequest) as caught:
            load_request(schema, body | {name: value})
        assert caught.value.param == name and repr(name)[1:-1] in caught.value.message


def test_a_request_has_up_to_2048_prompts() -> None:
    schema = CompletionSchema()
    assert len(load_request(schema, {"prompt": ["x"] * 2048}).prompts) == MAX_PROMPTS == 2048
    with pytest.raises(BadRequest):
        load_request(schema, {"prompt": ["x"] * 2049})
