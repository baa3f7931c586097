"""Chats: the prompt, the grammar and the parser that one model's template makes of a request."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from qwenapi.errors import BadRequest, ToolsUnsupported
from qwenapi.generation.chat import ChatOptions, ChatPrompt, PreparedChat, prepare_chat
from qwenapi.generation.tools import Tool, ToolChoice
from qwenapi.text.output.events import join_events
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.grammar import Grammar

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ASKED = {"role": "user", "content": "What is the weather in Paris?"}
ANY_JSON = Grammar(kind="json_schema", text='{"type": "object"}')
Make = Callable[[str], Tokenizer]


def tool(name: str = "get_weather", *, strict: bool = False) -> Tool:
    function = {"name": name, "description": "Get the weather of a city", "parameters": CITY}
    return Tool(name, CITY, strict, {"type": "function", "function": function})


def prepare(tokenizer: Tokenizer, *messages: dict[str, Any], **asked: Any) -> PreparedChat:
    options = ChatOptions(
        **{name: asked.pop(name) for name in ChatOptions.__annotations__ if name in asked}
    )
    chat = ChatPrompt(messages=messages or (ASKED,), **asked)
    return prepare_chat(tokenizer, chat, options)


def prompt(tokenizer: Tokenizer, *messages: dict[str, Any], **asked: Any) -> str:
    return tokenizer.decode(prepare(tokenizer, *messages, **asked).ids, False)


def read(chat: PreparedChat, text: str) -> tuple[str, str, list[tuple[str, Any]]]:
    """Return an output's thought, content and calls."""
    parser = chat.new_parser()
    output = join_events([*parser.push(text), *parser.finish()])
    calls = [(call.name, json.loads(call.arguments)) for call in output.calls]
    return output.reasoning, output.content, calls


def test_a_template_is_told_of_the_tools_and_their_calls_are_read(demo: Tokenizer) -> None:
    chat = prepare(demo, tools=[tool()])
    assert '"name": "get_weather"' in demo.decode(chat.ids, False)
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert read(chat, f"<think>\nsure\n</think>\n\n{call}") == (
        "sure",
        "",
        [("get_weather", {"city": "Paris"})],
    )


def test_without_tools_what_looks_like_a_call_is_content(demo: Tokenizer) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
    assert read(prepare(demo), call) == ("", call, [])


def test_who_wants_no_call_hides_the_tools(demo: Tokenizer) -> None:
    none = ToolChoice("none")
    assert prepare(demo, tools=[tool()], tool_choice=none) == prepare(demo)


def test_only_the_tools_allowed_are_read_as_calls(demo: Tokenizer) -> None:
    choice = ToolChoice("auto", ("get_time",))
    chat = prepare(demo, tools=[tool(), tool("get_time")], tool_choice=choice)
    assert "get_weather" in demo.decode(chat.ids, False)  # the model knows of all
    assert list(chat.tools) == ["get_time"] and chat.grammar is not None


def test_a_call_and_its_result_are_given_as_the_template_writes_them(demo: Tokenizer) -> None:
    function = {"name": "get_weather", "arguments": '{"city":"Paris"}'}
    call = {"type": "function", "function": function}
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    text = prompt(demo, ASKED, said, {"role": "tool", "content": "sunny"}, tools=[tool()])
    assert '{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>' in text
    assert "<tool_response>\nsunny\n</tool_response>" in text


def test_a_free_answer_has_no_grammar(demo: Tokenizer) -> None:
    assert prepare(demo, tools=[tool()]).grammar is None


@pytest.mark.parametrize(
    "asked",
    [
        {"tools": [tool()], "tool_choice": ToolChoice("required")},
        {"tools": [tool()], "tool_choice": ToolChoice("required", ("get_weather",))},
        {"tools": [tool()], "parallel_tool_calls": False},
        {"tools": [tool(strict=True)]},
    ],
    ids=["required", "named", "one", "strict"],
)
def test_a_bound_answer_has_the_grammar_of_its_calls(
    demo: Tokenizer, asked: dict[str, Any]
) -> None:
    grammar = prepare(demo, **asked).grammar
    assert grammar is not None and grammar.kind == "lark"
    assert "get_weather" in grammar.text


def test_a_named_function_is_the_only_one_of_the_grammar(demo: Tokenizer) -> None:
    named = ToolChoice("required", ("get_time",))
    grammar = prepare(demo, tools=[tool(), tool("get_time")], tool_choice=named).grammar
    assert grammar is not None
    assert "get_time" in grammar.text and "get_weather" not in grammar.text


def test_the_contents_grammar_gives_way_to_a_forced_call(demo: Tokenizer) -> None:
    asked: dict[str, Any] = {"tools": [tool()], "answer_format": ANY_JSON}
    free = prepare(demo, **asked).grammar
    forced = prepare(demo, **asked, tool_choice=ToolChoice("required")).grammar
    assert free is not None and free.kind == "json_schema"
    assert forced is not None and forced.kind == "lark"


def test_a_grammar_begins_behind_the_thought(demo: Tokenizer) -> None:
    think, end = demo.added_tokens["<think>"], demo.added_tokens["</think>"]
    grammar = prepare(demo, answer_format=ANY_JSON).grammar
    assert grammar is not None
    assert (grammar.thought_start_id, grammar.thought_end_ids) == (think, (end,))
    off = {"enable_thinking": False}
    assert prepare(demo, answer_format=ANY_JSON, template_arguments=off).grammar == ANY_JSON


def test_a_grammar_begins_behind_a_thought_that_is_not_told_from_content(demo: Tokenizer) -> None:
    chat = prepare(demo, answer_format=ANY_JSON, splits_reasoning=False)
    assert chat.thinking == "off" and chat.grammar is not None and chat.grammar.thought_end_ids
    assert read(chat, "<think>\nhm\n</think>\n\n{}") == ("", "<think>\nhm\n</think>\n\n{}", [])


def test_a_limit_of_the_thought_needs_a_grammar_where_there_is_a_thought(demo: Tokenizer) -> None:
    grammar = prepare(demo, max_thought_tokens=5).grammar
    assert grammar is not None and (grammar.kind, grammar.max_thought_tokens) == ("any", 5)
    off = {"enable_thinking": False}
    assert prepare(demo, max_thought_tokens=5, template_arguments=off).grammar is None


def test_a_model_whose_calls_nobody_reads_refuses_tools(demo: Tokenizer) -> None:
    with pytest.raises(ToolsUnsupported):
        prepare(demo, tools=[tool()], tool_call_parser="none")
    none = ToolChoice("none")
    prepare(demo, tools=[tool()], tool_call_parser="none", tool_choice=none)


def test_a_flag_chooses_the_parser_whatever_the_template_shows(demo: Tokenizer) -> None:
    chat = prepare(demo, tools=[tool()], tool_call_parser="qwen3_coder")
    call = "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>"
    assert read(chat, f"<tool_call>\n{call}\n</tool_call>")[2] == [
        ("get_weather", {"city": "Paris"})
    ]


def test_a_prefill_is_the_beginning_of_the_answer(demo: Tokenizer) -> None:
    begun = {"role": "assistant", "content": "It is"}
    text = prompt(demo, ASKED, begun, continues=True)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nIt is")


@pytest.mark.parametrize("silent", [{}, {"enable_thinking": None}])
def test_a_prefill_of_content_stands_behind_the_thought(
    demo: Tokenizer, silent: dict[str, None]
) -> None:
    """Its beginning is the answer's, so that there is nothing left to think."""
    begun = {"role": "assistant", "content": "It is"}
    chat = prepare(demo, ASKED, begun, continues=True, template_arguments=silent)
    assert chat.thinking == "off"


def test_a_prefill_may_have_a_thought(demo: Tokenizer) -> None:
    begun = {"role": "assistant", "content": "It", "reasoning_content": "I know"}
    text = prompt(demo, ASKED, begun, continues=True)
    assert text.endswith("assistant\n<think>\nI know\n</think>\n\nIt")


def test_a_conversation_can_be_given_without_a_turn_to_answer_in(demo: Tokenizer) -> None:
    assert prompt(demo, add_generation_prompt=False).endswith("Paris?<|im_end|>\n")


@pytest.mark.parametrize(
    ("template", "call_format", "thinking"),
    [
        ("Qwen2.5-7B-Instruct", "hermes", "off"),
        ("Qwen3-0.6B", "hermes", "possible"),
        ("Qwen3-Coder", "xml", "off"),
        ("Qwen3.5-4B", "xml", "open"),
    ],
)
def test_what_qwens_templates_show_is_how_their_models_are_read(
    qwen: Make, template: str, call_format: str, thinking: str
) -> None:
    chat = prepare(qwen(template), tools=[tool()])
    assert (chat.call_format, chat.thinking) == (call_format, thinking)
    off = prepare(qwen(template), tools=[tool()], template_arguments={"enable_thinking": False})
    assert off.thinking == "off"


@pytest.mark.parametrize("template", ["Qwen3-0.6B", "Qwen3.5-4B"])
def test_a_prefill_of_qwens_thinking_models_is_never_a_thought(qwen: Make, template: str) -> None:
    tokenizer = qwen(template)
    begun = {"role": "assistant", "content": "It is"}
    silent = {"enable_thinking": None}
    chat = prepare(tokenizer, ASKED, begun, continues=True, template_arguments=silent)
    assert chat.thinking == "off"
    assert tokenizer.decode(chat.ids, False).endswith("</think>\n\nIt is")


@pytest.mark.parametrize("template", ["Qwen2.5-7B-Instruct", "Qwen3-Coder"])
def test_a_prefill_of_models_that_do_not_think_is_bare(qwen: Make, template: str) -> None:
    begun = {"role": "assistant", "content": "It is"}
    assert prompt(qwen(template), ASKED, begun, continues=True).endswith("assistant\nIt is")


def test_a_strict_template_is_humoured_or_refuses_in_its_own_words(qwen: Make) -> None:
    late = (ASKED, {"role": "system", "content": "Be brief."}, ASKED)
    text = prompt(qwen("Qwen3.5-4B"), *late)
    assert text.startswith("<|im_start|>system\nBe brief.")
    with pytest.raises(BadRequest, match="System message must be at the beginning") as caught:
        prepare(qwen("Qwen3.5-4B"), *late, repairs=False)
    assert caught.value.param == "messages"
