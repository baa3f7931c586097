"""litellm as `openai/` and as `hosted_vllm/`: whole and streamed, with a tool, with a schema."""

import json
import os

import litellm
from proof import ANSWER, MODEL, PERSON, QUESTION, proves, tell, weather
from pydantic import BaseModel

PROVIDERS = ("openai", "hosted_vllm")
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


class Person(BaseModel):
    name: str
    age: int


def complete(provider: str, messages: list, **options):
    base = os.environ["OPENAI_BASE_URL"]
    return litellm.completion(
        f"{provider}/{MODEL}", messages, api_base=base, temperature=0, **options
    )


def answer_after(provider: str, message) -> str:
    results = [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": weather(**json.loads(call.function.arguments)),
        }
        for call in message.tool_calls
    ]
    again = complete(provider, [*ASKED, message, *results], tools=[TOOL])
    return again.choices[0].message.content


@proves("chat", "completion")
def chat():
    for provider in PROVIDERS:
        hello = complete(provider, [{"role": "user", "content": "你好"}])
        assert hello.choices[0].message.content


@proves("stream", "completion")
def stream():
    for provider in PROVIDERS:
        chunks = complete(provider, [{"role": "user", "content": "你好"}], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@proves("tools", "completion")
def tools():
    for provider in PROVIDERS:
        asked = complete(provider, ASKED, tools=[TOOL], tool_choice="auto")
        assert asked.choices[0].finish_reason == "tool_calls"
        assert answer_after(provider, asked.choices[0].message) == ANSWER


@proves("stream_tools", "stream_chunk_builder")
def stream_tools():
    for provider in PROVIDERS:
        chunks = list(complete(provider, ASKED, tools=[TOOL], stream=True))
        whole = litellm.stream_chunk_builder(chunks, messages=ASKED)
        assert answer_after(provider, whole.choices[0].message) == ANSWER


@proves("schema", "response_format")
def response_format():
    for provider in PROVIDERS:
        asked = complete(provider, [{"role": "user", "content": PERSON}], response_format=Person)
        person = Person.model_validate_json(asked.choices[0].message.content)
        assert person == Person(name="Alice", age=30)


@proves("reasoning", "reasoning_content")
def reasoning():
    for provider in PROVIDERS:
        asked = complete(provider, ASKED, tools=[TOOL])
        assert "get_weather" in asked.choices[0].message.reasoning_content


tell("litellm")
