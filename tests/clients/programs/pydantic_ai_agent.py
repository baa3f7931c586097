"""pydantic-ai: an agent with a tool, plain, streamed, and with output types in its three ways."""

from proof import ANSWER, MODEL, PERSON, QUESTION, proves, tell, weather
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel

model = OpenAIChatModel(MODEL, settings={"temperature": 0})
agent = Agent(model)


@agent.tool_plain
def get_weather(city: str) -> str:
    """Get the weather of a city"""
    return weather(city)


class Person(BaseModel):
    name: str
    age: int


@proves("chat", "run")
def chat():
    assert Agent(model).run_sync("你好").output


@proves("tools", "tool_plain")
def tools():
    assert agent.run_sync(QUESTION).output == ANSWER


@proves("stream_tools", "run_stream")
def stream_tools():
    run = agent.run_stream_sync(QUESTION)
    assert "".join(run.stream_text(delta=True)) == ANSWER


@proves("stream", "run_stream")
def stream():
    run = Agent(model).run_stream_sync("你好")
    assert "".join(run.stream_text(delta=True)) == Agent(model).run_sync("你好").output


def typed(output) -> None:
    assert Agent(model, output_type=output).run_sync(PERSON).output == Person(name="Alice", age=30)


@proves("schema", "ToolOutput")
def tool_output():
    typed(ToolOutput(Person))


@proves("schema", "NativeOutput")
def native_output():
    typed(NativeOutput(Person))


@proves("json", "PromptedOutput")
def prompted_output():
    typed(PromptedOutput(Person))


@proves("reasoning", "ThinkingPart")
def reasoning():
    parts = [part for message in agent.run_sync(QUESTION).all_messages() for part in message.parts]
    assert [part.content for part in parts if part.part_kind == "thinking"]


tell("pydantic-ai-slim")
