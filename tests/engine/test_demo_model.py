"""The embedded demo model: made once, whole, the same everywhere, and loadable by transformers."""

import hashlib
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.errors import ConfigError
from workers.model import demo


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "demo"
    demo.make_demo_model(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory):
    return AutoTokenizer.from_pretrained(directory)


def digests(directory: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()
    }


def test_two_makings_are_the_same_bytes(directory, tmp_path):
    demo.make_demo_model(tmp_path / "again")
    assert digests(tmp_path / "again") == digests(directory)


def test_it_has_the_files_of_a_model_directory(directory):
    assert sorted(digests(directory)) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_transformers_generates_with_it(directory, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.architectures == ["Qwen3ForCausalLM"]
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings == 8192
    prompt = tokenizer("你好", return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert answer.shape[1] == prompt["input_ids"].shape[1] + 8


def test_its_tokenizer_gives_every_text_back(tokenizer):
    text = "Hello, 世界！\r\n\t 🚀👩‍👩‍👧 \x00\x7f ᚠ 1234567890 don't"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("人工智能正在改变我们的生活").input_ids) <= 8


def test_its_tokens_can_spell_every_byte(directory):
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
    assert set(ByteLevel.alphabet()) <= set(vocabulary)
    assert len(ByteLevel.alphabet()) == 256


def test_marks_are_single_tokens_and_only_chatml_is_special(tokenizer):
    for mark in ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>"):
        assert len(tokenizer(mark).input_ids) == 1
    ids = tokenizer("<|im_start|><think>x</think><|im_end|>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>x</think>"


def test_its_template_writes_chatml(tokenizer):
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "你好"}]
    plain = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == plain
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert asked == plain + "<|im_start|>assistant\n"
    quick = tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert quick == asked + "<think>\n\n</think>\n\n"


def test_its_template_writes_tool_calls_and_answers(tokenizer):
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "北京"}}}
    chat = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
    ]
    text = tokenizer.apply_chat_template(chat, tools=[call], tokenize=False)
    assert (
        '<tool_call>\n{"name": "f", "arguments": {"city": "北京"}}\n</tool_call><|im_end|>' in text
    )
    assert (
        "<|im_start|>user\n<tool_response>\none\n</tool_response>"
        "\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
    ) in text


def test_it_is_cached_and_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = demo.demo_model_dir()
    made = (first / "config.json").stat().st_mtime_ns
    assert demo.demo_model_dir() == first
    assert first.parent == tmp_path / "qwenapi"
    assert (first / "config.json").stat().st_mtime_ns == made


def test_two_makers_at_once_leave_one_whole_model(tmp_path):
    target = tmp_path / "demo"
    makers = [threading.Thread(target=demo.make_demo_model, args=(target,)) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert len(digests(target)) == 5


def test_an_unwritable_cache_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set XDG_CACHE_HOME"):
        demo.make_demo_model(tmp_path / "file" / "demo")
