"""Anthropic's own client: a picture in a message, in a tool's result, and counted."""

import os

import anthropic
from proof import proves, tell

client = anthropic.Anthropic(max_retries=0)
KIND, DATA = os.environ["PICTURE"].removeprefix("data:").split(";base64,")
SOURCE = {"type": "base64", "media_type": KIND, "data": DATA}
PICTURE = {"type": "image", "source": SOURCE}
LEAST = int(os.environ["LEAST"])
ASK = {"model": os.environ["MODEL"], "max_tokens": 8}


def read(message):
    """Return how many tokens of a prompt were read, computed or known."""
    return message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


@proves("picture", "messages.create")
def create():
    content = [PICTURE, {"type": "text", "text": "look"}]
    messages = [{"role": "user", "content": content}]
    found = client.messages.create(**ASK, messages=messages)
    assert read(found) >= LEAST
    counted = client.messages.count_tokens(model=ASK["model"], messages=messages)
    assert counted.input_tokens == read(found)


@proves("picture", "tool_result")
def tool_result():
    call = {"type": "tool_use", "id": "t", "name": "see", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [PICTURE]}
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    assert read(client.messages.create(**ASK, messages=messages)) >= LEAST


tell("anthropic")
