"""Views of Anthropic's interface: messages, whole or streamed, and the counting of their tokens.

The headers `anthropic-version` and `anthropic-beta` are accepted, whatever they say.
"""

from typing import Any

from flask import Blueprint, Response, g

from qwenapi.api.anthropic.schemas import (
    CountTokensSchema,
    MessagesRequest,
    MessagesSchema,
)
from qwenapi.api.anthropic.writer import MessageWriter
from qwenapi.generation.chat import ChatOptions, ChatPrompt, PreparedChat, prepare_chat
from qwenapi.http.body import accepts
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import (
    caller,
    count_request,
    current_profile,
    generation_request,
    load_body,
)
from qwenapi.request_context.respond import respond
from qwenapi.request_context.services import image_reader, served_model, services
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import ModelCard

blueprint = Blueprint("anthropic", __name__)


@blueprint.after_request
def _name_request(response: Response) -> Response:
    """Tell the request's id under the name that Anthropic's clients log, too."""
    response.headers["request-id"] = g.request_id
    return response


def _check_model(body: dict[str, Any]) -> None:
    """Refuse a model that is not served, and count the request against its key's limit."""
    if isinstance(name := body.get("model"), str):
        services().profiles.check_name(current_profile(), name, caller().models)
    count_request()


@blueprint.post("/v1/messages")
@accepts(MessagesSchema, before=_check_model, load=load_body)
def messages(ask: MessagesRequest) -> Response:
    card, tokenizer = served_model()
    profile = current_profile()
    chat = _prepared(ask, card, tokenizer)
    is_thinking = chat.thinking != "off"
    wanted, cut = generation_request(
        ask,
        [chat.ids],
        card,
        grammar=chat.grammar,
        by_token=is_thinking,
        images=chat.images,
    )
    return respond(
        wanted,
        tokenizer,
        lambda stream: MessageWriter(stream, chat, profile, shows_thinking=ask.shows_thinking),
        streams=ask.stream,
        cut=cut,
    )


@blueprint.post("/v1/messages/count_tokens")
@accepts(CountTokensSchema, before=_check_model, load=load_body)
def count_tokens(ask: MessagesRequest) -> Response:
    card, tokenizer = served_model(None)
    return json_response({"input_tokens": len(_prepared(ask, card, tokenizer).ids)})


def _prepared(ask: MessagesRequest, card: ModelCard, tokenizer: Tokenizer) -> PreparedChat:
    profile = current_profile()
    thinking = profile.thinking if ask.enable_thinking is None else ask.enable_thinking
    prompt = ChatPrompt(
        messages=ask.messages,
        tools=ask.tools,
        tool_choice=ask.tool_choice,
        parallel_tool_calls=ask.parallel_tool_calls,
        template_arguments={"enable_thinking": thinking},
        continues=ask.messages[-1]["role"] == "assistant",
        answer_format=ask.answer_format,
        max_thought_tokens=ask.max_thought_tokens,
    )
    options = ChatOptions.of(profile.settings)
    return prepare_chat(tokenizer, prompt, options, image_reader(card))
