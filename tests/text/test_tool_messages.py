import json
from collections.abc import Callable
from typing import Any

import pytest

from qwenapi.text.chat_template import ChatTemplate
from qwenapi.text.errors import TemplateError
from qwenapi.text.output.call_format import choose_format
from qwenapi.text.output.events import join_events
from qwenapi.text.output.output_parser import OutputParser, thinking_of
from qwenapi.text.template_repair import repair
from qwenapi.text.tool_messages import to_template

TEMPLATES = ("Qwen2.5-7B-Instruct", "Qwen3-0.6B", "Qwen3-Coder", "Qwen3.5-4B")
FORMATS = ("hermes", "hermes", "xml", "xml")
ARGUMENTS = {"city": "北京", "days": 3, "exact": True, "tags": ["a", {"b": None}]}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "a town"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "tags": {"type": "array"},
            },
            "required": ["city"],
        },
    },
}


def call(arguments: object, **more: object) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function, **more}


def converted(message: dict[str, Any], call_format: Any = "hermes") -> dict[str, Any]:
    [result] = to_template([message], call_format)
    return result


@pytest.mark.parametrize(
    ("arguments", "hermes", "xml"),
    [
        ('{"a": [1]}', {"a": [1]}, {"a": [1]}),
        ({"a": 1}, {"a": 1}, {"a": 1}),
        ("", {}, {}),
        (None, {}, {}),
        ('{"a": "b', '{"a": "b', {"arguments": '{"a": "b'}),
        ("[1]", "[1]", {"arguments": "[1]"}),
        ("[" * 100_000, "[" * 100_000, {"arguments": "[" * 100_000}),
    ],
)
def test_arguments_become_an_object(arguments: object, hermes: object, xml: object) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [call(arguments)]}
    for call_format, wanted in (("hermes", hermes), ("xml", xml), (None, hermes)):
        [found] = converted(message, call_format)["tool_calls"]
        assert found == call(wanted)
    assert message["tool_calls"] == [call(arguments)]


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ({"role": "assistant"}, {"content": ""}),
        ({"role": "assistant", "content": None, "tool_calls": []}, {"content": ""}),
        ({"role": "assistant", "content": "", "tool_calls": None}, {"content": ""}),
        ({"role": "user", "content": [{"type": "text", "text": "a"}]}, {"content": "a"}),
        (
            {
                "role": "tool",
                "tool_call_id": "x",
                "name": "f",
                "content": [{"text": "a"}, {"text": "b"}],
            },
            {"content": "a\nb", "tool_call_id": "x", "name": "f"},
        ),
        ({"role": "tool", "content": None}, {"content": ""}),
        (
            {"role": "user", "content": [{"type": "image", "image": "u"}, {"text": "b"}]},
            {"content": [{"type": "image", "image": "u"}, {"text": "b"}]},
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": "r"},
            {"content": "a", "reasoning_content": "r"},
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": "r", "reasoning_content": "q"},
            {"content": "a", "reasoning_content": "q"},
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": "r", "reasoning_content": None},
            {"content": "a", "reasoning_content": "r"},
        ),
        ({"role": "assistant", "content": "a", "reasoning": None}, {"content": "a"}),
    ],
)
def test_messages_become_what_templates_read(message: dict[str, Any], wanted: Any) -> None:
    assert converted(message) == {"role": message["role"], **wanted}


@pytest.fixture(scope="module")
def template(assets: Any) -> Callable[[str], tuple[ChatTemplate, str]]:
    def make(name: str) -> tuple[ChatTemplate, str]:
        source = (assets / f"chat_template.{name}.jinja").read_text("utf-8")
        return ChatTemplate(source, {}), source

    return make


LOOP: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "I ask.",
        "tool_calls": [call(json.dumps(ARGUMENTS)), call("{}")],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "晴"}]},
    {"role": "tool", "tool_call_id": "call_2", "content": "雨"},
]


@pytest.mark.parametrize(("name", "call_format"), list(zip(TEMPLATES, FORMATS, strict=True)))
def test_templates_show_the_format_they_are_chosen_for(
    template: Any, name: str, call_format: str
) -> None:
    assert choose_format(template(name)[1]) == call_format
    assert choose_format("{{ messages }}") is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_loop_renders_as_transformers_renders_the_native_form(
    template: Any, assets: Any, name: str
) -> None:
    from transformers import PreTrainedTokenizerFast

    made, source = template(name)
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(assets / "tokenizer.json"), chat_template=source
    )
    native = [
        LOOP[0],
        LOOP[1],
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I ask.",
            "tool_calls": [call(ARGUMENTS), call({})],
        },
        {"role": "tool", "content": "晴"},
        {"role": "tool", "content": "雨"},
    ]
    wanted = reference.apply_chat_template(
        native, tools=[TOOL], tokenize=False, add_generation_prompt=True
    )
    messages = repair(to_template(LOOP, choose_format(source)))
    assert made.render(messages, tools=[TOOL], add_generation_prompt=True) == wanted


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_writes_for_history_parses_back(template: Any, name: str) -> None:
    made, source = template(name)
    call_format = choose_format(source)
    rendered = made.render(to_template(LOOP[:3], call_format), tools=[TOOL])
    output = rendered.rpartition("<|im_start|>assistant")[2].lstrip("\n").partition("<|im_end|>")[0]
    schema = TOOL["function"]["parameters"]
    parser = OutputParser(call_format, {"get_weather": schema}, "possible")
    message = join_events([*parser.push(output), *parser.finish()])
    assert [json.loads(found.arguments) for found in message.calls] == [ARGUMENTS, {}]
    assert message.content == ""
    assert message.reasoning == ("I ask." if "think" in source else "")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("broken", ['{"city": "Par', "[]", "", None])
def test_a_broken_call_does_not_end_the_conversation(
    template: Any, name: str, broken: str | None
) -> None:
    made, source = template(name)
    messages = [LOOP[1], {**LOOP[2], "tool_calls": [call(broken)]}, LOOP[4]]
    rendered = made.render(to_template(messages, choose_format(source)), tools=[TOOL])
    assert not broken or "Par" not in broken or "Par" in rendered


@pytest.mark.parametrize("name", TEMPLATES)
def test_late_system_messages_render_in_front(template: Any, name: str) -> None:
    made, source = template(name)
    messages = to_template(
        [
            {"role": "user", "content": "one"},
            {"role": "developer", "content": "first"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "three"},
            {"role": "system", "content": "second"},
            {"role": "user", "content": "four"},
        ]
    )
    rendered = made.render(repair(messages), add_generation_prompt=True)
    assert (
        "<|im_start|>system\nfirst\n\nsecond<|im_end|>\n<|im_start|>user\none\n\ntwo<" in rendered
    )
    if name == "Qwen3.5-4B":
        with pytest.raises(TemplateError):
            made.render(messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "variables", "thinking"),
    [
        ("Qwen3-0.6B", {}, "possible"),
        ("Qwen3-0.6B", {"enable_thinking": False}, "off"),
        ("Qwen3.5-4B", {}, "open"),
        ("Qwen3.5-4B", {"enable_thinking": False}, "off"),
    ],
)
def test_real_prompts_say_whether_a_thought_is_open(
    template: Any, name: str, variables: dict[str, Any], thinking: str
) -> None:
    prompt = template(name)[0].render(LOOP[1:2], add_generation_prompt=True, **variables)
    assert thinking_of(prompt) == thinking
