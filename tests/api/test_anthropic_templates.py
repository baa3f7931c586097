"""Claude Code's conversations as Qwen's own chat templates render them."""

import os
from pathlib import Path

import pytest

from qwenapi.api.anthropic.schemas import MessagesSchema
from qwenapi.http.schemas import load_request
from qwenapi.text.chat_template import ChatTemplate
from qwenapi.text.output.call_format import choose_format
from qwenapi.text.template_repair import repair
from qwenapi.text.tool_messages import to_template
from tests.api import claude_code

HERMES = '<tool_call>\n{"name": "Read", "arguments": {"path": "a"}}\n</tool_call>'
XML = "<tool_call>\n<function=Read>\n<parameter=path>\na\n</parameter>\n</function>\n</tool_call>"
CALLS = {
    "Qwen2.5-7B-Instruct": HERMES,
    "Qwen3-0.6B": HERMES,
    "Qwen3-Coder": XML,
    "Qwen3.5-4B": XML,
}


@pytest.mark.parametrize("model", CALLS)
def test_every_template_renders_them_with_calls_results_and_tools(model):
    if not (folder := os.environ.get("QWEN_ASSETS")):
        pytest.skip("QWEN_ASSETS names no folder with Qwen's chat templates")
    source = Path(folder, f"chat_template.{model}.jinja").read_text(encoding="utf-8")
    ask = load_request(MessagesSchema(), claude_code.request())
    messages = repair(to_template(ask.messages, choose_format(source)))
    prompt = ChatTemplate(source, {}).render(
        messages, tools=[tool.source for tool in ask.tools], add_generation_prompt=True
    )
    assert CALLS[model] in prompt
    places = [
        prompt.index(words)
        for words in (
            *("You help with code.\nThe folder is /tmp/x.", "Fix it.", "I look at two files."),
            *("1 x = 1", "Error: No such file.\nLook again.", "Go on."),
        )
    ]
    assert places == sorted(places)
    assert all(f"What {name} does" in prompt for name in claude_code.NAMES.split())
    assert "billing" not in prompt and "<|im_start|>assistant\n" in prompt[-40:]
