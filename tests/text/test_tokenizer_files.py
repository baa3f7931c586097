"""Odd tokenizer files are refused by name when they are read, in one sentence, never by a request.

Each is made from the demo's: a few of many that a download, an editor or another tool leaves.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwenapi.settings.table import etc_dir
from qwenapi.text.errors import TokenizerError
from qwenapi.text.tokenizer import Tokenizer

DEMO = etc_dir() / "models" / "demo"
WHOLE = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))
CONFIG = json.loads((DEMO / "tokenizer_config.json").read_text("utf-8"))
VOCAB, ADDED = WHOLE["model"]["vocab"], WHOLE["added_tokens"]
TEXT_A, TEXT_B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")


def of_model(**changes: Any) -> dict[str, Any]:
    return {**WHOLE, "model": WHOLE["model"] | changes}


def of_added(**changes: Any) -> dict[str, Any]:
    return {**WHOLE, "added_tokens": [ADDED[0] | changes, *ADDED[1:]]}


def of_template(*single: Any, **special: Any) -> dict[str, Any]:
    pair = [TEXT_A, TEXT_B]
    template = {"type": "TemplateProcessing", "single": single, "pair": pair}
    return {**WHOLE, "post_processor": template | {"special_tokens": special}}


def of_regex(part: str, regex: str, **more: Any) -> dict[str, Any]:
    kind = {"pre_tokenizer": "Split", "normalizer": "Replace"}[part]
    return {**WHOLE, part: {"type": kind, "pattern": {"Regex": regex}, **more}}


SPLIT = {"behavior": "Isolated", "invert": False}
UNKNOWN = {"SpecialToken": {"id": "<x>", "type_id": 0}}
TOKENIZERS: dict[str, Any] = {
    "empty": b"",
    "null": None,
    "a list": [],
    "an empty object": {},
    "cut off": json.dumps(WHOLE).encode()[:5000],
    "not UTF-8": bytes(range(256)),
    "nested deeply": b"[" * 100_000,
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\nsize 7\n",
    "without a model": {k: v for k, v in WHOLE.items() if k != "model"},
    "model null": {**WHOLE, "model": None},
    "WordPiece": of_model(type="WordPiece"),
    "Unigram": {**WHOLE, "model": {"type": "Unigram", "vocab": [["a", 0.0]]}},
    "vocabulary a list": of_model(vocab=[]),
    "vocabulary empty": of_model(vocab={}, merges=[]),
    "ids as text": of_model(vocab={k: str(v) for k, v in VOCAB.items()}),
    "ids below 0": of_model(vocab={k: -v for k, v in VOCAB.items()}),
    "one id for all": of_model(vocab=dict.fromkeys(VOCAB, 0)),
    "merges of unknown tokens": of_model(merges=["zz yy"]),
    "merges of numbers": of_model(merges=[1, 2]),
    "merges of three": of_model(merges=[["a", "b", "c"]]),
    "a subword prefix": of_model(continuing_subword_prefix="##"),
    "a word suffix": of_model(end_of_word_suffix="</w>"),
    "added tokens null": {**WHOLE, "added_tokens": None},
    "added tokens of numbers": {**WHOLE, "added_tokens": [1]},
    "an added token without content": {**WHOLE, "added_tokens": [{"id": 1}]},
    "an added token of a number": of_added(content=5),
    "an empty added token": of_added(content=""),
    "an added token below 0": of_added(id=-1),
    "an added token with a gap": of_added(id=4000),
    "an added token of a huge id": of_added(id=4_000_000_000),
    "two added tokens of one id": of_added(id=ADDED[1]["id"]),
    "decoder missing": {k: v for k, v in WHOLE.items() if k != "decoder"},
    "decoder null": {**WHOLE, "decoder": None},
    "decoder of another kind": {**WHOLE, "decoder": {"type": "Fuse"}},
    "decoder unknown": {**WHOLE, "decoder": {"type": "Nope"}},
    "post_processor a number": {**WHOLE, "post_processor": 5},
    "post_processor without the text": of_template(),
    "post_processor of the text twice": of_template(TEXT_A, TEXT_A),
    "post_processor of another text": of_template(TEXT_B),
    "post_processor of an unknown token": of_template(
        UNKNOWN, TEXT_A, **{"<x>": {"id": "<x>", "ids": [9999], "tokens": ["<x>"]}}
    ),
    "pre_tokenizer null": {**WHOLE, "pre_tokenizer": None},
    "pre_tokenizer that loses spaces": {**WHOLE, "pre_tokenizer": {"type": "Whitespace"}},
    "pre_tokenizer of a broken pattern": of_regex("pre_tokenizer", "(", **SPLIT),
    "normalizer of a broken pattern": of_regex("normalizer", "[", content=""),
    "normalizer that loses all": of_regex("normalizer", ".", content=""),
    "another version": {**WHOLE, "version": "9.0"},
}
CONFIGS: dict[str, Any] = {
    "empty": b"",
    "null": None,
    "a list": [],
    "a text": "a",
    "cut off": b'{"chat_template": "',
    "not UTF-8": b"\xff\xfe\x00",
    "a template of a number": {"chat_template": 5},
    "a template of true": {"chat_template": True},
    "a template that does not compile": {"chat_template": "{% if"},
    "a template with an unknown filter": {"chat_template": "{{ messages | nope }}"},
    "half a surrogate pair": {"chat_template": "\ud800"},
    "templates of numbers": {"chat_template": [1]},
    "templates without text": {"chat_template": [{"name": "default"}]},
    "templates of wrong texts": {"chat_template": [{"name": "default", "template": 5}]},
    "eos of a number": {"eos_token": 5},
    "eos of a list": {"eos_token": ["<|im_end|>"]},
    "eos without content": {"eos_token": {"id": 3}},
    "eos of a wrong content": {"eos_token": {"content": 5}},
    "pad of true": {"pad_token": True},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    return tmp_path


def write(file: Path, content: Any) -> None:
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.mark.parametrize("content", TOKENIZERS.values(), ids=TOKENIZERS)
def test_an_odd_tokenizer_is_refused_by_name(folder: Path, content: Any) -> None:
    Tokenizer(folder)
    write(folder / "tokenizer.json", content)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer(folder)
    refused_in_a_sentence(folder / "tokenizer.json", caught.value)


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_an_odd_tokenizer_config_is_refused_by_name(folder: Path, content: Any) -> None:
    write(folder / "tokenizer_config.json", content)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer(folder)
    refused_in_a_sentence(folder / "tokenizer_config.json", caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{{", b"{% for %}"])
def test_an_odd_template_file_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / "chat_template.jinja").write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer(folder)
    refused_in_a_sentence(folder / "chat_template.jinja", caught.value)


def refused_in_a_sentence(file: Path, error: TokenizerError) -> None:
    words = str(error)
    assert words.startswith(f"{file}: ") and "; " in words and "\n" not in words
    assert len(words) < 1000


@pytest.mark.parametrize(
    "content",
    [
        of_model(merges=WHOLE["model"]["merges"] * 40),
        of_model(byte_fallback=True, ignore_merges=True),
        {**WHOLE, "truncation": {"max_length": 5, "strategy": "LongestFirst", "stride": 1,
                                 "direction": "Right"}},
        {**WHOLE, "padding": {"strategy": {"Fixed": 1000}, "direction": "Right", "pad_id": 0,
                              "pad_type_id": 0, "pad_token": "x", "pad_to_multiple_of": None}},
    ],
)  # fmt: skip
def test_what_is_unusual_but_right_is_read(folder: Path, content: Any) -> None:
    write(folder / "tokenizer.json", content)
    assert Tokenizer(folder).decode(Tokenizer(folder).encode("天空 is blue")) == "天空 is blue"


@pytest.mark.parametrize(
    ("template", "has_one"),
    [
        (None, False),
        ("", False),
        ({"default": "{{ messages[0].content }}", "rag": "x"}, True),
        ([{"name": "default", "template": "{{ messages[0].content }}"}], True),
        ([{"name": "rag", "template": "x"}], False),
    ],
)
def test_a_template_may_stand_alone_among_others_or_be_missing(
    folder: Path, template: Any, has_one: bool
) -> None:
    write(folder / "tokenizer_config.json", CONFIG | {"chat_template": template})
    tokenizer = Tokenizer(folder)
    assert (tokenizer._template is not None) == has_one
    if has_one:
        assert tokenizer.render_chat([{"role": "user", "content": "hi"}]) == "hi"


def test_a_word_outside_the_alphabet_is_spelt_as_it_is(folder: Path) -> None:
    file = folder / "tokenizer.json"
    id_ = len(VOCAB)
    added = [token | {"id": token["id"] + 1} for token in ADDED]
    write(file, of_model(vocab=VOCAB | {"\u2581word": id_}) | {"added_tokens": added})
    assert Tokenizer(folder).decode([id_]) == "\u2581word"


@pytest.mark.parametrize("kind", ["post_processor of another text", "an added token with a gap"])
def test_every_command_ends_with_78_and_the_sentence(tmp_path: Path, kind: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)
    write(model / "tokenizer.json", TOKENIZERS[kind])
    for command in ("doctor", "model", "serve"):
        flags = ["--model", str(model), "--run-dir", str(tmp_path / "run")]
        line = [sys.executable, "-m", "qwenapi", command, *flags]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert done.returncode == 78, done.stderr
        said = done.stdout + done.stderr
        assert f"{model / 'tokenizer.json'}: " in said and "Traceback" not in said
