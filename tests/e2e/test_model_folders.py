"""Model folders as people have them, served whole: what a caller sees of each."""

import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open

from qwenapi.settings.table import etc_dir
from tests.running_server import wait_for

DEMO = etc_dir() / "models" / "demo"
FLAGS = ("--dtype", "float32", "--threads", "2")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my-model"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.py", "data", "heldout"))
    return folder


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_an_answer_ends_at_the_tokenizers_own_eos(start_server, folder):
    """As of models fine-tuned from a base whose two other files still name its <|endoftext|>."""
    for name in ("config.json", "generation_config.json"):
        change(folder / name, eos_token_id=2991)
    server = start_server("--model", str(folder), *FLAGS)
    asked = {"messages": [{"role": "user", "content": "你好"}], "temperature": 0, "max_tokens": 200}
    answer = server.post("/v1/chat/completions", asked).json()
    choice = answer["choices"][0]
    assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("stop", 23)
    assert choice["message"]["content"].endswith("有什么可以帮你？")


def test_a_model_that_does_not_sample_keeps_its_penalty(start_server, folder, monkeypatch):
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": False, "repetition_penalty": 1.5, "top_k": 20, "temperature": 2})
    )
    monkeypatch.chdir(folder)
    server = start_server("--model", ".", *FLAGS)
    assert server.get("/v1/models").json()["data"][0]["id"] == "my-model"
    asked = {"prompt": "1 1 1 1 1 1 1 1", "max_tokens": 12, "ignore_eos": True}
    explicit = {"temperature": 0, "repetition_penalty": 1.5}
    texts = [
        server.post("/v1/completions", asked | more).json()["choices"][0]["text"]
        for more in ({}, {"temperature": 0}, explicit, {"repetition_penalty": 1.0})
    ]
    assert texts[:3] == ["：1计算111121111"] * 3 and texts[3] == "111111111111"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_weights_that_are_no_numbers_are_an_error_and_a_count(start_server, folder, is_streamed):
    spoil(folder / "model.safetensors", "model.norm.weight")
    server = start_server("--model", str(folder), *FLAGS)
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}
    answer = server.post("/v1/chat/completions", asked | {"stream": is_streamed})
    assert "!!!" not in answer.text and '"error"' in answer.text
    assert answer.status_code == (200 if is_streamed else 500)
    line = 'qwenapi_engine_nonfinite_logits_total{engine="0"} 1'
    wait_for(lambda: line in server.get("/metrics").text.splitlines(), 20)
    assert "logits are not finite" in server.log


def spoil(file, name):
    """Write NaN over a tensor of bfloat16, where it lies."""
    with safe_open(file, framework="np") as opened:
        assert opened.get_slice(name).get_dtype() == "BF16"
    raw = bytearray(file.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    start, stop = json.loads(raw[8 : 8 + length])[name]["data_offsets"]
    nans = np.full((stop - start) // 2, 0x7FC0, np.uint16).tobytes()
    raw[8 + length + start : 8 + length + stop] = nans
    file.write_bytes(raw)
