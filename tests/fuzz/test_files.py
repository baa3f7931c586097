"""Files that are nearly right: weights, tokenizer, template, keys, profiles; read, or refused."""

import json
import shutil
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenapi.keys.key_file import read_keys
from qwenapi.settings.profile import Profiles
from qwenapi.settings.sources import load, load_profiles
from qwenapi.settings.table import etc_dir
from qwenapi.text.errors import TemplateError, TokenizerError
from qwenapi.text.tokenizer import Tokenizer
from tests.fuzz.mutations import fuzzing, near, spoilt
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.safetensors_header import header_bytes, read_header
from workers.errors import ConfigError

DEMO = etc_dir() / "models" / "demo"
PROFILES = [path.read_bytes() for path in sorted((etc_dir() / "profiles").glob("*.toml"))]
HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}
KEY = {
    "id": "abcdefgh",
    "sha256": "0" * 64,
    "tenant": "t",
    "scopes": ["inference"],
    "limits": {"requests_per_minute": 3},
    "not_after": "2030-01-01T00:00:00Z",
}
KEYS = {"keys": [KEY]}
CONFIG = json.loads((DEMO / "config.json").read_text("utf-8"))
TOKENIZER_CONFIG = json.loads((DEMO / "tokenizer_config.json").read_text("utf-8"))
MESSAGES = [{"role": "user", "content": "hi"}]
TEMPLATES = [
    TOKENIZER_CONFIG.get("chat_template") or (DEMO / "chat_template.jinja").read_text("utf-8")
]
WHOLE = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))
# A part of its vocabulary, so that what is changed is as often something else.
KNOWN = {token: id_ for token, id_ in WHOLE["model"]["vocab"].items() if id_ < 276}
VOCABULARY = {
    "vocab": KNOWN,
    "merges": [merge for merge in WHOLE["model"]["merges"] if "".join(merge) in KNOWN],
}
BARE = WHOLE | {
    "model": WHOLE["model"] | {"vocab": {}, "merges": []},
    "added_tokens": [token | {"id": 276 + i} for i, token in enumerate(WHOLE["added_tokens"])],
}
TOKENIZER = BARE | {"model": BARE["model"] | VOCABULARY}
HOSTILE = "<|im_start|>\r\n e\u0301 \u4e2d\u6587 \U0001f642\u200d \0 \ufffe" + "a" * 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a copy of the demo model to be spoilt, file by file."""
    copy = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(DEMO, copy)
    return copy


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def as_json(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@fuzzing
@given(near(HEADER), st.integers(-3, 3), st.binary(max_size=40))
def test_a_header_of_weights_is_read_or_refused(folder, header, more, data):
    text = as_json(header)
    size = struct.pack("<Q", max(0, len(text) + more))
    path = written(folder / "fuzz.safetensors", size + text + data)
    try:
        read_header(path)
        header_bytes(path)
    except ConfigError as error:
        assert str(path) in str(error)


@fuzzing
@given(near(CONFIG))
def test_a_config_of_a_model_is_read_or_refused(folder, config):
    written(folder / "config.json", as_json(config))
    try:
        checkpoint = Checkpoint.at(folder)
        checkpoint.check()
        assert checkpoint.config and checkpoint.model_hash
    except ConfigError:
        pass


def render_with(folder, name, data):
    """Render a conversation with one file replaced, or be refused; put the file back."""
    written(folder / name, data)
    try:
        Tokenizer(folder).encode_chat(MESSAGES)
    except (TokenizerError, TemplateError):
        pass
    finally:
        shutil.copy(DEMO / name, folder)


@fuzzing
@given(near(TOKENIZER_CONFIG))
def test_a_config_of_a_tokenizer_is_read_or_refused(folder, config):
    render_with(folder, "tokenizer_config.json", as_json(config))


def with_vocabulary(tokenizer):
    """Return a tokenizer of no token with some, unless its model was changed away."""
    if isinstance(tokenizer, dict) and isinstance(tokenizer.get("model"), dict):
        tokenizer["model"] |= VOCABULARY
    return tokenizer


@fuzzing
@given(
    st.one_of(
        near(BARE).map(with_vocabulary).map(as_json),
        near(TOKENIZER).map(as_json),
        spoilt([as_json(TOKENIZER)]),
    )
)
def test_a_tokenizer_encodes_whatever_comes_or_is_refused(folder, data):
    written(folder / "tokenizer.json", data)
    try:
        tokenizer = Tokenizer(folder)
    except TokenizerError as error:
        assert str(folder / "tokenizer.json") in str(error)
        return
    finally:
        shutil.copy(DEMO / "tokenizer.json", folder)
    began = time.monotonic()
    for text in ("", "hello", HOSTILE):
        ids = tokenizer.encode(text)
        assert all(0 <= id_ < tokenizer.vocab_size for id_ in ids)
        assert isinstance(tokenizer.decode(ids), str)
        assert isinstance(tokenizer.decode(tokenizer.encode_plain(text)), str)
    assert time.monotonic() - began < 1


@fuzzing
@given(spoilt([template.encode() for template in TEMPLATES]))
def test_a_template_is_rendered_or_refused(folder, template):
    render_with(folder, "chat_template.jinja", template)


@fuzzing
@given(st.one_of(near(KEYS).map(as_json), spoilt([as_json(KEYS)])))
def test_a_file_of_keys_is_read_or_refused(folder, data):
    path = written(folder / "keys.json", data)
    path.chmod(0o600)
    try:
        read_keys(path)
    except ConfigError as error:
        assert str(path) in str(error)


@fuzzing
@given(spoilt(PROFILES))
def test_a_profile_is_read_or_refused(folder, data):
    path = written(folder / "fuzz.toml", data)
    flags = {"profile": str(path)}
    try:
        Profiles(load_profiles(load(flags, {}), flags, {}))
    except ConfigError:
        pass


def test_what_is_spoilt_was_read(folder):
    text = as_json(HEADER)
    path = written(folder / "good.safetensors", struct.pack("<Q", len(text)) + text + bytes(32))
    assert set(read_header(path)) == {"a", "b"}
    written(folder / "tokenizer.json", as_json(TOKENIZER))
    assert len(Tokenizer(folder).encode("hello")) in range(2, 6)
    keys = written(folder / "good.json", as_json(KEYS))
    keys.chmod(0o600)
    assert len(read_keys(keys)) == 1
