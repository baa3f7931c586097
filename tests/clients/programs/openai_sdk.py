"""OpenAI's own client: create, the helper for streams, and parse."""

import json

import openai
from proof import ANSWER, MODEL, PERSON, QUESTION, proves, tell, weather
from pydantic import BaseModel

client = openai.OpenAI()
ASKED = [{"role": "user", "content": QUESTION}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
ASK = {"model": MODEL, "temperature": 0}


class Person(BaseModel):
    name: str
    age: int


class GetWeather(BaseModel):
    """Get the weather of a city"""

    city: str


def answer_after(message):
    """Return what is answered once the message's calls have their results."""
    results = [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": weather(**json.loads(call.function.arguments)),
        }
        for call in message.tool_calls
    ]
    again = client.chat.completions.create(
        **ASK, messages=[*ASKED, message, *results], tools=[TOOL]
    )
    assert again.choices[0].finish_reason == "stop"
    return again.choices[0].message.content


@proves("chat", "create")
def chat():
    hello = client.chat.completions.create(**ASK, messages=[{"role": "user", "content": "你好"}])
    assert hello.choices[0].message.content and hello.usage.completion_tokens
    assert MODEL in [model.id for model in client.models.list()]


@proves("stream", "create")
def stream():
    chunks = client.chat.completions.create(
        **ASK,
        messages=[{"role": "user", "content": "你好"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    *some, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in some)
    assert last.usage.completion_tokens and not last.choices


@proves("tools", "create")
def tools():
    asked = client.chat.completions.create(**ASK, messages=ASKED, tools=[TOOL])
    assert asked.choices[0].finish_reason == "tool_calls"
    assert answer_after(asked.choices[0].message) == ANSWER


@proves("tools", "tool_choice")
def tool_choice():
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        asked = client.chat.completions.create(
            **ASK, messages=ASKED, tools=[TOOL], tool_choice=choice
        )
        assert answer_after(asked.choices[0].message) == ANSWER
    none = client.chat.completions.create(**ASK, messages=ASKED, tools=[TOOL], tool_choice="none")
    assert not none.choices[0].message.tool_calls


@proves("stream_tools", "create")
def stream_tools():
    calls = {}
    for chunk in client.chat.completions.create(**ASK, messages=ASKED, tools=[TOOL], stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(delta.index, {"id": delta.id, "name": delta.function.name})
            call["arguments"] = call.get("arguments", "") + (delta.function.arguments or "")
    assert chunk.choices[0].finish_reason == "tool_calls"
    (call,) = calls.values()
    assert call["name"] == "get_weather" and call["id"].startswith("call_")
    assert json.loads(call["arguments"]) == {"city": "Paris"}


@proves("stream_tools", "stream()")
def stream_helper():
    with client.chat.completions.stream(**ASK, messages=ASKED, tools=[TOOL]) as events:
        kinds = {event.type for event in events}
        whole = events.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    assert answer_after(whole.choices[0].message) == ANSWER


@proves("schema", "parse")
def parse():
    asked = client.chat.completions.parse(
        **ASK, messages=[{"role": "user", "content": PERSON}], response_format=Person
    )
    assert asked.choices[0].message.parsed == Person(name="Alice", age=30)


@proves("schema", "stream()")
def stream_parse():
    with client.chat.completions.stream(
        **ASK, messages=[{"role": "user", "content": PERSON}], response_format=Person
    ) as events:
        parsed = events.get_final_completion().choices[0].message.parsed
    assert parsed == Person(name="Alice", age=30)


@proves("tools", "pydantic_function_tool")
def parse_tools():
    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    asked = client.chat.completions.parse(**ASK, messages=ASKED, tools=[tool])
    (call,) = asked.choices[0].message.tool_calls
    assert call.function.parsed_arguments == GetWeather(city="Paris")
    assert answer_after(asked.choices[0].message) == ANSWER


@proves("json", "json_object")
def json_mode():
    asked = client.chat.completions.create(
        **ASK,
        messages=[{"role": "user", "content": PERSON}],
        response_format={"type": "json_object"},
    )
    assert json.loads(asked.choices[0].message.content) == {"name": "Alice", "age": 30}


@proves("reasoning", "reasoning_content")
def reasoning():
    message = client.chat.completions.create(**ASK, messages=ASKED, tools=[TOOL]).choices[0].message
    assert "get_weather" in message.reasoning_content == message.reasoning
    assert not message.content


@proves("reasoning", "reasoning_effort")
def effort():
    asked = client.chat.completions.create(
        **ASK, messages=ASKED, tools=[TOOL], reasoning_effort="none"
    )
    message = asked.choices[0].message
    assert not hasattr(message, "reasoning_content") and message.tool_calls


tell("openai")
