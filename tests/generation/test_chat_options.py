"""What the settings allow of a chat, and how a choice says what ended it."""

import pytest

from qwenapi.errors import BadRequest
from qwenapi.generation.chat import ChatOptions, ChatPrompt, prepare_chat
from qwenapi.generation.chat_output import ChatOutput
from qwenapi.generation.delta import Delta
from qwenapi.generation.tools import Tool, ToolChoice
from qwenapi.settings.sources import load
from qwenapi.settings.table import etc_dir
from qwenapi.text.output.output_parser import OutputParser
from qwenapi.text.stop_matcher import StopAutomaton
from qwenapi.text.text_stream import TextStream
from qwenapi.text.tokenizer import Tokenizer

TOOL = Tool("now", {}, source={"type": "function", "function": {"name": "now"}})


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(etc_dir() / "models" / "demo")


def test_a_free_choice_of_tools_can_be_switched_off(tokenizer):
    options = ChatOptions.of(load({"enable_auto_tool_choice": "false"}, {}))
    asked = {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL]}
    with pytest.raises(BadRequest, match="--no-enable-auto-tool-choice"):
        prepare_chat(tokenizer, ChatPrompt(**asked), options)
    for choice in (ToolChoice("none"), ToolChoice("required")):
        assert prepare_chat(tokenizer, ChatPrompt(**asked, tool_choice=choice), options).ids
    assert prepare_chat(tokenizer, ChatPrompt(**asked), ChatOptions.of(load({}, {}))).ids


def test_a_choice_names_the_stop_string_that_ended_it(tokenizer):
    stream = TextStream(tokenizer, StopAutomaton(["two", "three"]))
    assert stream.stop is None
    assert stream.push(tokenizer.encode("one three two")).text == "one "
    assert stream.stop == "three"
    output = ChatOutput(OutputParser)
    ((delta,),) = output.read([[Delta(0, "one ", finish_reason="stop", stop="three")]])
    assert (delta.finish_reason, delta.stop) == ("stop", "three")
