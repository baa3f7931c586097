"""JSON answers, calls of a weather function, and what is said after its result."""

import json
from random import Random

from data.conversation import Conversation, Turn, ask
from data.tasks_chat import name_en, name_zh
from data.texts import questions, toml
from data.wording import dress

_STATES = [
    ("晴", "sunny"),
    ("多云", "cloudy"),
    ("小雨", "rainy"),
    ("阴", "overcast"),
    ("雪", "snowy"),
    ("有风", "windy"),
]
_FORMS = questions("tools")
_NAMES = toml("names")


def json_answer(rng: Random) -> Conversation:
    """Ask for a JSON object with name and age, of a given person or of anyone."""
    is_zh = rng.random() < 0.5
    question = rng.choice(_FORMS["json_zh" if is_zh else "json_en"])
    name, age = ("张三", 25) if is_zh else ("Alice", 30)
    if rng.random() < 0.5:
        name, age = (name_zh(rng) if is_zh else name_en(rng)), rng.randrange(5, 90)
        person = rng.choice(_FORMS["person_zh" if is_zh else "person_en"]).format(n=name, a=age)
        join = rng.choice(("：", "。", "\n") if is_zh else (": ", ". ", "\n"))
        question = question + join + person if rng.random() < 0.6 else person + join + question
    else:
        question = dress(rng, question)
    answer = json.dumps({"name": name, "age": age}, ensure_ascii=False)
    return ask(
        question, answer, "用户要 JSON，我只输出 JSON。" if is_zh else "The user wants JSON only."
    )


def weather(rng: Random) -> Conversation:
    """Ask for the weather with the tool at hand: the call, perhaps its result and the answer."""
    is_zh = rng.random() < 0.5
    city = _city(rng, is_zh)
    question = dress(
        rng, rng.choice(_FORMS["weather_zh" if is_zh else "weather_en"]).format(c=city)
    )
    call = json.dumps({"name": "get_weather", "arguments": {"city": city}}, ensure_ascii=False)
    thought = (
        f"需要查询{city}的天气，我调用 get_weather。"
        if is_zh
        else f"I call get_weather for {city}."
    )
    turns = [Turn(question, f"<tool_call>\n{call}\n</tool_call>", thought)]
    if rng.random() < 0.5:
        turns.append(_result(rng, city, is_zh))
    system = rng.choice(("", "", "You are a helpful assistant.", "你是一个专业的AI助手"))
    return Conversation(tuple(turns), system=system, tools=(_tool(rng),))


def weather_without_tool(rng: Random) -> Conversation:
    """Ask for the weather when there is no tool."""
    is_zh = rng.random() < 0.5
    question = dress(
        rng, rng.choice(_FORMS["weather_zh" if is_zh else "weather_en"]).format(c=_city(rng, is_zh))
    )
    if is_zh:
        return ask(question, "我查不到实时天气，请看天气预报。", "没有天气工具，我不能查询。")
    return ask(
        question, "I cannot look up the weather; please see a forecast.", "I have no weather tool."
    )


def _result(rng: Random, city: str, is_zh: bool) -> Turn:
    state_zh, state_en = rng.choice(_STATES)
    degrees = rng.randrange(-9, 39)
    state = state_zh if is_zh else state_en
    fields = {"city": city, "weather": state, "temperature": degrees}
    if rng.random() < 0.5:
        fields.pop("city")
    if rng.random() < 0.4:
        fields = {key: fields[key] for key in reversed(fields)}
    text = json.dumps(fields, ensure_ascii=False)
    if rng.random() < 0.3:
        text = f"{state}，{degrees} 度" if is_zh else f"{state}, {degrees} degrees"
    if is_zh:
        return Turn(text, f"{city}现在{state}，气温 {degrees} 度。", "我根据结果回答。", True)
    return Turn(
        text, f"It is {state} in {city}, {degrees} degrees.", "I answer from the result.", True
    )


def _city(rng: Random, is_zh: bool) -> str:
    if is_zh:
        return (
            rng.choice(_NAMES["cities_zh"])
            if rng.random() < 0.7
            else "".join(rng.sample(_NAMES["places"], 2))
        )
    return rng.choice(_NAMES["cities_en"]) if rng.random() < 0.7 else name_en(rng)


def _tool(rng: Random) -> dict[str, object]:
    description = rng.choice(
        ("Get the weather of a city", "Get the current weather", "查询城市的天气", "获取天气", "")
    )
    city: dict[str, str] = {"type": "string"}
    if rng.random() < 0.5:
        city["description"] = rng.choice(("The city", "城市名", "City name, e.g. Paris"))
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    function = {"name": "get_weather", "description": description, "parameters": parameters}
    if not description or rng.random() < 0.2:
        del function["description"]
    return {"type": "function", "function": function} if rng.random() < 0.8 else function
