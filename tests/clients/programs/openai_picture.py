"""OpenAI's own client: a picture in chat completions and in Responses."""

import os

from openai import OpenAI
from proof import proves, tell

client = OpenAI(max_retries=0)
URL, MODEL = os.environ["PICTURE"], os.environ["MODEL"]


@proves("picture", "chat.completions.create")
def chat():
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
    ]
    messages = [{"role": "user", "content": parts}]
    found = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    assert found.usage.prompt_tokens >= int(os.environ["LEAST"])


@proves("picture", "responses.create")
def responses():
    parts = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": URL, "detail": "auto"},
    ]
    asked = [{"role": "user", "content": parts}]
    found = client.responses.create(model=MODEL, input=asked, max_output_tokens=8)
    assert found.usage.input_tokens >= int(os.environ["LEAST"])


tell("openai")
