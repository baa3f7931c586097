"""OpenAI's Agents SDK with its chat model: a function tool, whole and streamed, an output type."""

import asyncio

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
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
    model = OpenAIChatCompletionsModel(MODEL, AsyncOpenAI())
    settings = ModelSettings(temperature=0)
    return Agent(name="demo", model=model, model_settings=settings, **options)


@proves("chat", "Runner.run")
def chat():
    assert Runner.run_sync(agent(), "你好").final_output


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
