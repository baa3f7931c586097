"""Anthropic's own client: create, its helper for streams, parse, count_tokens, and its errors."""

import anthropic
from proof import ANSWER, MODEL, PERSON, QUESTION, proves, tell, weather
from pydantic import BaseModel

client = anthropic.Anthropic(max_retries=0)
HELLO = [{"role": "user", "content": "你好"}]
ASKED = [{"role": "user", "content": QUESTION}]
TOOL = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
ASK = {"model": MODEL, "max_tokens": 200, "extra_body": {"temperature": 0}}


class Person(BaseModel):
    name: str
    age: int


def answer_after(message):
    """Return what is answered once the message's calls have their results."""
    assert message.stop_reason == "tool_use"
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": weather(**block.input)}
        for block in message.content
        if block.type == "tool_use"
    ]
    turns = [
        *ASKED,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results},
    ]
    again = client.messages.create(**ASK, messages=turns, tools=[TOOL])
    assert again.stop_reason == "end_turn"
    return text_of(again)


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


@proves("chat", "create")
def chat():
    hello = client.messages.create(**ASK, messages=HELLO)
    assert text_of(hello) and hello.usage.output_tokens and hello._request_id


@proves("chat", "count_tokens")
def count():
    counted = client.messages.count_tokens(model=MODEL, messages=ASKED, tools=[TOOL])
    usage = client.messages.create(**ASK, messages=ASKED, tools=[TOOL]).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    again = client.messages.create(**ASK, messages=ASKED, tools=[TOOL]).usage
    assert again.cache_read_input_tokens > 0  # by the prefix cache
    assert counted.input_tokens == again.input_tokens + again.cache_read_input_tokens


@proves("chat", "NotFoundError")
def errors():
    try:
        client.messages.create(**(ASK | {"model": "nobody"}), messages=HELLO)
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error"
    else:
        raise AssertionError("a model that is not served answered")


@proves("stream", "stream()")
def stream():
    with client.messages.stream(**ASK, messages=HELLO) as events:
        text = "".join(events.text_stream)
        whole = events.get_final_message()
    assert text == text_of(whole) == text_of(client.messages.create(**ASK, messages=HELLO))


@proves("tools", "create")
def tools():
    asked = client.messages.create(**ASK, messages=ASKED, tools=[TOOL])
    assert answer_after(asked) == ANSWER


@proves("tools", "tool_choice")
def tool_choice():
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        asked = client.messages.create(**ASK, messages=ASKED, tools=[TOOL], tool_choice=choice)
        assert answer_after(asked) == ANSWER
    none = client.messages.create(**ASK, messages=ASKED, tools=[TOOL], tool_choice={"type": "none"})
    assert all(block.type != "tool_use" for block in none.content)


@proves("stream_tools", "stream()")
def stream_tools():
    with client.messages.stream(**ASK, messages=ASKED, tools=[TOOL]) as events:
        kinds = {event.type for event in events}
        whole = events.get_final_message()
    assert "input_json" in kinds
    assert answer_after(whole) == ANSWER


@proves("schema", "parse")
def parse():
    asked = client.messages.parse(
        **ASK, messages=[{"role": "user", "content": PERSON}], output_format=Person
    )
    assert asked.parsed_output == Person(name="Alice", age=30)


@proves("reasoning", "thinking")
def thinking():
    asked = client.messages.create(
        **ASK,
        messages=ASKED,
        tools=[TOOL],
        thinking={"type": "enabled", "budget_tokens": 100},
    )
    thought = asked.content[0]
    assert thought.type == "thinking" and "get_weather" in thought.thinking and thought.signature
    assert answer_after(asked) == ANSWER
    plain = client.messages.create(**ASK, messages=ASKED, tools=[TOOL])
    assert all(block.type != "thinking" for block in plain.content)


tell("anthropic")
