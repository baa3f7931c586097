"""Where the tokenizer of an engine on another machine is looked for on this one."""

import hashlib

import msgspec
import pytest

from qwenapi.generation.tokenizers import Tokenizers
from qwenapi.settings.table import etc_dir
from tests.wire.test_protocol import CARD
from workers.errors import ModelError

DEMO = etc_dir() / "models" / "demo"
SHA = hashlib.sha256((DEMO / "tokenizer.json").read_bytes()).hexdigest()


def card(folder, sha=SHA):
    return msgspec.structs.replace(CARD, model_dir=str(folder), tokenizer_sha256=sha)


@pytest.mark.parametrize("theirs", [DEMO, "/not/on/this/machine"])
def test_the_engines_folder_is_taken_where_it_is_here_or_else_this_machines_own(theirs):
    tokenizers = Tokenizers(DEMO)
    tokenizers.prepare(card(theirs))
    assert tokenizers.of(card(theirs)).encode("hello")


def test_another_models_tokenizer_is_refused():
    with pytest.raises(ModelError, match="let --model name a folder with the same tokenizer.json"):
        Tokenizers(DEMO).prepare(card("/not/on/this/machine", "0" * 64))
