"""LangChain's ChatOpenAI: a picture by its standard content block, and by OpenAI's."""

import os

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from proof import proves, tell

model = ChatOpenAI(model=os.environ["MODEL"], temperature=0, max_tokens=8)
URL = os.environ["PICTURE"]


def check(part):
    message = HumanMessage([{"type": "text", "text": "look"}, part])
    usage = model.invoke([message]).usage_metadata
    assert usage["input_tokens"] >= int(os.environ["LEAST"])


@proves("picture", "standard block")
def standard():
    kind, data = URL.removeprefix("data:").split(";base64,")
    check({"type": "image", "base64": data, "mime_type": kind})


@proves("picture", "image_url")
def image_url():
    check({"type": "image_url", "image_url": {"url": URL}})


tell("langchain-openai")
