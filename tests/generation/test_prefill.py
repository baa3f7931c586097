"""An answer that has begun is gone on with, and no thought is opened in its middle."""

import pytest

from qwenapi.generation.chat import ChatOptions, ChatPrompt, prepare_chat
from qwenapi.settings.table import etc_dir
from qwenapi.text.tokenizer import Tokenizer

BEGUN = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hel"}]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(etc_dir() / "models" / "demo")


def prompt_of(tokenizer, thinking):
    chat = ChatPrompt(
        messages=BEGUN, continues=True, template_arguments={"enable_thinking": thinking}
    )
    ids = prepare_chat(tokenizer, chat, ChatOptions()).ids
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("thinking", [None, False])
def test_a_prefill_stands_behind_an_empty_thought_unless_asked_otherwise(tokenizer, thinking):
    assert prompt_of(tokenizer, thinking).endswith("<think>\n\n</think>\n\nHel")


def test_a_caller_who_asks_for_thinking_gets_the_prefill_alone(tokenizer):
    assert prompt_of(tokenizer, True).endswith("assistant\nHel")
