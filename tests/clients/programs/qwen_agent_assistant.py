"""Qwen-Agent's Assistant with a tool of its own, by the OpenAI-compatible endpoint."""

import json
import os

from proof import ANSWER, MODEL, QUESTION, proves, tell, weather
from qwen_agent.agents import Assistant
from qwen_agent.tools.base import BaseTool


class GetWeather(BaseTool):
    name = "get_weather"
    description = "Get the weather of a city"
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }

    def call(self, params, **_):
        return weather(json.loads(params)["city"])


def run(*, native: bool) -> list[dict]:
    """Return all that is said; the server reads calls that are native, else Qwen-Agent does."""
    served = {
        "model": MODEL,
        "model_type": "oai",
        "model_server": os.environ["OPENAI_BASE_URL"],
        "api_key": "any",
        "generate_cfg": {"temperature": 0, "use_raw_api": native},
    }
    assistant = Assistant(llm=served, function_list=[GetWeather()])
    *_, said = assistant.run([{"role": "user", "content": QUESTION}])
    return said


@proves("stream_tools", "use_raw_api")
def native_tools():
    assert run(native=True)[-1]["content"] == ANSWER


@proves("stream", "Assistant")
def its_own_prompt():
    assert run(native=False)[-1]["content"] == ANSWER


@proves("reasoning", "reasoning_content")
def reasoning():
    assert "get_weather" in run(native=True)[0]["reasoning_content"]


tell("qwen-agent")
