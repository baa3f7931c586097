"""LangChain's ChatOpenAI: bind_tools, structured output in its three ways, streams."""

from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from proof import ANSWER, MODEL, PERSON, QUESTION, proves, tell, weather
from pydantic import BaseModel

model = ChatOpenAI(model=MODEL, temperature=0)


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city"""
    return weather(city)


class Person(BaseModel):
    """A person"""

    name: str
    age: int


@proves("chat", "invoke")
def chat():
    assert model.invoke("你好").content


@proves("stream", "stream")
def stream():
    assert "".join(chunk.content for chunk in model.stream("你好")) == model.invoke("你好").content


@proves("tools", "bind_tools")
def tools():
    bound = model.bind_tools([get_weather])
    asked = bound.invoke(QUESTION)
    results = [get_weather.invoke(call) for call in asked.tool_calls]
    assert bound.invoke([HumanMessage(QUESTION), asked, *results]).content == ANSWER


@proves("stream_tools", "bind_tools")
def stream_tools():
    bound = model.bind_tools([get_weather])
    asked = AIMessageChunk("")
    for chunk in bound.stream(QUESTION):
        asked += chunk
    results = [get_weather.invoke(call) for call in asked.tool_calls]
    again = bound.stream([HumanMessage(QUESTION), asked, *results])
    assert "".join(chunk.content for chunk in again) == ANSWER


def structured(method: str) -> None:
    bound = model.with_structured_output(Person, method=method)
    assert bound.invoke(PERSON) == Person(name="Alice", age=30)


@proves("schema", "json_schema")
def json_schema():
    structured("json_schema")


@proves("schema", "function_calling")
def function_calling():
    structured("function_calling")


@proves("json", "json_mode")
def json_mode():
    structured("json_mode")


tell("langchain-openai")
