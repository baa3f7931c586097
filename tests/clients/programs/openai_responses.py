"""OpenAI's own client on the Responses interface: create, stream, parse, and what is kept."""

import json

import openai
from proof import ANSWER, MODEL, PERSON, QUESTION, proves, tell, weather
from pydantic import BaseModel

client = openai.OpenAI()
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
ASK = {"model": MODEL, "temperature": 0}


class Person(BaseModel):
    name: str
    age: int


def outputs_of(response):
    """Return the outputs of the response's calls, of which there are some."""
    calls = [item for item in response.output if item.type == "function_call"]
    assert calls and all(call.name == "get_weather" for call in calls)
    return [
        {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": weather(**json.loads(call.arguments)),
        }
        for call in calls
    ]


@proves("chat", "create")
def chat():
    hello = client.responses.create(**ASK, input="你好")
    assert hello.output_text and hello.usage.output_tokens and hello.status == "completed"
    assert client.responses.retrieve(hello.id).output_text == hello.output_text
    (item,) = client.responses.input_items.list(hello.id)
    assert item.content[0].text == "你好"
    counted = client.responses.input_tokens.count(model=MODEL, input="你好")
    assert counted.input_tokens == hello.usage.input_tokens
    client.responses.delete(hello.id)
    try:
        client.responses.retrieve(hello.id)
    except openai.NotFoundError:
        return
    raise AssertionError("a deleted response was found")


@proves("chat", "background")
def background():
    begun = client.responses.create(**ASK, input="你好", background=True)
    while begun.status in ("queued", "in_progress"):
        begun = client.responses.retrieve(begun.id)
    assert begun.output_text == client.responses.create(**ASK, input="你好").output_text


@proves("stream", "stream()")
def stream():
    with client.responses.stream(**ASK, input="你好") as events:
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        whole = events.get_final_response()
    assert text == whole.output_text == client.responses.create(**ASK, input="你好").output_text


@proves("tools", "create")
def tools():
    items = [{"role": "user", "content": QUESTION}]
    asked = client.responses.create(**ASK, input=items, tools=[TOOL], store=False)
    items += [*asked.output, *outputs_of(asked)]
    again = client.responses.create(**ASK, input=items, tools=[TOOL], store=False)
    assert again.output_text == ANSWER


@proves("tools", "previous_response_id")
def chain():
    asked = client.responses.create(**ASK, input=QUESTION, tools=[TOOL])
    again = client.responses.create(
        **ASK, input=outputs_of(asked), previous_response_id=asked.id, tools=[TOOL]
    )
    assert again.output_text == ANSWER and again.previous_response_id == asked.id


@proves("tools", "tool_choice")
def tool_choice():
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        asked = client.responses.create(**ASK, input=QUESTION, tools=[TOOL], tool_choice=choice)
        assert outputs_of(asked)
    none = client.responses.create(**ASK, input=QUESTION, tools=[TOOL], tool_choice="none")
    assert all(item.type != "function_call" for item in none.output)


@proves("stream_tools", "stream()")
def stream_tools():
    with client.responses.stream(**ASK, input=QUESTION, tools=[TOOL]) as events:
        kinds = {event.type for event in events}
        whole = events.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    again = client.responses.create(
        **ASK, input=outputs_of(whole), previous_response_id=whole.id, tools=[TOOL]
    )
    assert again.output_text == ANSWER


@proves("schema", "parse")
def parse():
    asked = client.responses.parse(**ASK, input=PERSON, text_format=Person)
    assert asked.output_parsed == Person(name="Alice", age=30)


@proves("schema", "stream()")
def stream_parse():
    with client.responses.stream(**ASK, input=PERSON, text_format=Person) as events:
        assert events.get_final_response().output_parsed == Person(name="Alice", age=30)


@proves("json", "json_object")
def json_mode():
    asked = client.responses.create(**ASK, input=PERSON, text={"format": {"type": "json_object"}})
    assert json.loads(asked.output_text) == {"name": "Alice", "age": 30}


@proves("reasoning", "reasoning")
def reasoning():
    asked = client.responses.create(
        **ASK, input=QUESTION, tools=[TOOL], include=["reasoning.encrypted_content"]
    )
    thought = asked.output[0]
    assert thought.type == "reasoning" and "get_weather" in thought.content[0].text
    assert thought.encrypted_content and asked.usage.output_tokens_details.reasoning_tokens
    plain = client.responses.create(
        **ASK, input=QUESTION, tools=[TOOL], reasoning={"effort": "none"}
    )
    assert all(item.type != "reasoning" for item in plain.output)


tell("openai")
