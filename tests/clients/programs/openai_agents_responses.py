"""OpenAI's Agents SDK with its default model, which speaks Responses: tools, types, streams."""

import asyncio

from agents import (
    Agent,
    ModelSettings,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from proof import ANSWER, MODEL, PERSON, QUESTION, proves, tell, weather
from pydantic import BaseModel

set_tracing_disabled(True)


class Person(BaseModel):
    name: str
    age: int


@function_tool
def get_weather(city: str) -> str:
    """Get the weather of a city"""
    return weather(city)


def agent(**options) -> Agent:
    """Return an agent whose connections belong to no other event loop."""
    set_default_openai_client(AsyncOpenAI(), use_for_tracing=False)
    return Agent(name="demo", model=MODEL, model_settings=ModelSettings(temperature=0), **options)


@proves("chat", "Runner.run")
def chat():
    first = Runner.run_sync(agent(), "你好")
    assert first.final_output
    more = Runner.run_sync(agent(), "你好", previous_response_id=first.last_response_id)
    assert more.final_output


@proves("tools", "function_tool")
def tools():
    assert Runner.run_sync(agent(tools=[get_weather]), QUESTION).final_output == ANSWER


@proves("stream_tools", "run_streamed")
def stream_tools():
    async def run() -> str:
        result = Runner.run_streamed(agent(tools=[get_weather]), QUESTION)
        deltas = [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event"
            and event.data.type == "response.output_text.delta"
        ]
        assert "".join(deltas) == result.final_output
        return result.final_output

    assert asyncio.run(run()) == ANSWER


@proves("schema", "output_type")
def output_type():
    asked = Runner.run_sync(agent(output_type=Person), PERSON)
    assert asked.final_output == Person(name="Alice", age=30)


tell("openai-agents")
