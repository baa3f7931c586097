"""LangChain's ChatOpenAI on the Responses interface: bind_tools, structured output, streams."""

from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from proof import ANSWER, MODEL, PERSON, QUESTION, proves, tell, weather
from pydantic import BaseModel

model = ChatOpenAI(model=MODEL, temperature=0, use_responses_api=True)


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
    assert model.invoke("你好").text


@proves("stream", "stream")
def stream():
    assert "".join(chunk.text for chunk in model.stream("你好")) == model.invoke("你好").text


@proves("tools", "bind_tools")
def tools():
    bound = model.bind_tools([get_weather])
    asked = bound.invoke(QUESTION)
    results = [get_weather.invoke(call) for call in asked.tool_calls]
    assert results and bound.invoke([HumanMessage(QUESTION), asked, *results]).text == ANSWER


@proves("stream_tools", "bind_tools")
def stream_tools():
    bound = model.bind_tools([get_weather])
    asked = AIMessageChunk("")
    for chunk in bound.stream(QUESTION):
        asked += chunk
    results = [get_weather.invoke(call) for call in asked.tool_calls]
    again = bound.stream([HumanMessage(QUESTION), asked, *results])
    assert "".join(chunk.text for chunk in again) == ANSWER


@proves("schema", "json_schema")
def json_schema():
    bound = model.with_structured_output(Person, method="json_schema")
    assert bound.invoke(PERSON) == Person(name="Alice", age=30)


@proves("reasoning", "reasoning")
def reasoning():
    asked = model.bind_tools([get_weather]).invoke(QUESTION)
    assert any(block["type"] == "reasoning" for block in asked.content)


tell("langchain-openai")
