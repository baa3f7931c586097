"""LangChain's `ChatAnthropic`: answers, streams, tools, and structured output."""

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from proof import ANSWER, MODEL, PERSON, QUESTION, proves, tell, weather
from pydantic import BaseModel

model = ChatAnthropic(model=MODEL, temperature=0, max_tokens=200)


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city"""
    return weather(city)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def answer_after(message):
    assert isinstance(message, AIMessage) and message.tool_calls
    results = [
        ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
        for call in message.tool_calls
    ]
    again = model.bind_tools([get_weather]).invoke([HumanMessage(QUESTION), message, *results])
    return again.text


@proves("chat", "invoke")
def chat():
    hello = model.invoke("你好")
    assert hello.text and hello.usage_metadata["output_tokens"]


@proves("stream", "stream")
def stream():
    assert "".join(chunk.text for chunk in model.stream("你好")) == model.invoke("你好").text


@proves("tools", "bind_tools")
def tools():
    assert answer_after(model.bind_tools([get_weather]).invoke(QUESTION)) == ANSWER


@proves("stream_tools", "bind_tools")
def stream_tools():
    first, *others = model.bind_tools([get_weather]).stream(QUESTION)
    for chunk in others:
        first += chunk
    assert answer_after(first) == ANSWER


@proves("schema", "json_schema")
def schema():
    asked = model.with_structured_output(Person, method="json_schema").invoke(PERSON)
    assert asked == Person(name="Alice", age=30)


tell("langchain-anthropic")
