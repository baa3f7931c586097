"""vLLM's token addresses through real gunicorn: the same tokens as transformers makes."""

import pytest
from transformers import AutoTokenizer

from qwenapi.settings.table import etc_dir
from tests.running_server import RunningServer

DEMO = etc_dir() / "models" / "demo"
TEXTS = [
    "hello",
    "你好，世界 🙂👩\u200d💻",
    "<|im_start|>user\nhi<|im_end|>\n",
    "e\u0301 \n\n\t don't",  # becomes another text, in composed form
    "",
]
CHAT = [
    {"role": "system", "content": "你是助手。"},
    {"role": "user", "content": "今天 🙂 星期几?"},
]
TOOL = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def reference():
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_tokens_that_transformers_gives_it(stub_server, reference, text):
    answer = stub_server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    ids = reference(text)["input_ids"]
    assert answer == {
        "count": len(ids),
        "max_model_len": answer["max_model_len"],
        "tokens": ids,
        "token_strs": reference.convert_ids_to_tokens(ids),
    }
    assert stub_server.post("/detokenize", {"tokens": ids}).json() == {
        "prompt": reference.decode(ids)
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [TOOL]},
        {"add_generation_prompt": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_a_conversation_has_the_tokens_of_its_template(stub_server, reference, fields):
    answer = stub_server.post("/tokenize", {"model": "qwen-demo", "messages": CHAT, **fields})
    said = {"add_generation_prompt": True} | fields
    said |= said.pop("chat_template_kwargs", {})
    expected = reference.apply_chat_template(CHAT, tokenize=True, return_dict=False, **said)
    assert answer.json()["tokens"] == expected and answer.json()["token_strs"] is None


def test_a_conversation_counts_as_many_tokens_as_its_answer_says(stub_server):
    counted = stub_server.post("/tokenize", {"messages": CHAT, "tools": [TOOL]}).json()["count"]
    body = {"messages": CHAT, "tools": [TOOL], "max_tokens": 1}
    answered = stub_server.post("/v1/chat/completions", body).json()
    assert answered["usage"]["prompt_tokens"] == counted


def test_the_last_message_can_be_left_open(stub_server):
    chat = [*CHAT, {"role": "assistant", "content": "今天"}]
    body = {"messages": chat, "continue_final_message": True, "add_generation_prompt": False}
    text = stub_server.post(
        "/detokenize", {"tokens": stub_server.post("/tokenize", body).json()["tokens"]}
    ).json()["prompt"]
    assert "<|im_start|>assistant\n" in text and text.endswith("今天")


def test_a_text_longer_than_the_context_is_counted_too(stub_server):
    answer = stub_server.post("/tokenize", {"prompt": "好 word " * 100_000})
    assert answer.status_code == 200
    assert answer.json()["count"] > answer.json()["max_model_len"]


@pytest.mark.parametrize("path", ["/tokenizer_info", "/v1/tokenizer_info"])
def test_the_tokenizer_is_described(stub_server, reference, path):
    info = stub_server.get(path).json()
    assert info["eos_token"] == reference.eos_token and info["pad_token"] == reference.pad_token
    assert info["chat_template"] == reference.chat_template and info["tokenizer_class"]
    assert str(DEMO) not in str(info)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": [TOOL]}, "tools"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": CHAT, "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": CHAT, "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "yes"}, "add_special_tokens"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [2**31 - 1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(stub_server, path, body, param):
    answer = stub_server.post(path, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


def test_an_unknown_model_and_an_unknown_field_are_told(stub_server):
    assert stub_server.post("/tokenize", {"prompt": "a", "model": "x"}).status_code == 404
    answer = stub_server.post("/tokenize", {"prompt": "a", "colour": 1})
    assert answer.status_code == 200 and answer.headers["X-Ignored"] == "colour"


def test_a_key_without_the_scope_is_refused(tmp_path):
    server = RunningServer(tmp_path / "run", "--stub", "--api-key", "secret")
    try:
        server.wait_until_ready()
        assert server.post("/tokenize", {"prompt": "a"}).status_code == 401
        assert server.get("/tokenizer_info").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert server.post("/tokenize", {"prompt": "a"}, headers=headers).status_code == 200
        assert server.stop() == 0
    finally:
        server.close()
