"""Views of vLLM's token addresses: a text's or a conversation's tokens, their text, and whose."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response

from qwenapi.api.openai.token_schemas import (
    DetokenizeRequest,
    DetokenizeSchema,
    TokenizeRequest,
    TokenizeSchema,
)
from qwenapi.api.openai.views import chat_prompt
from qwenapi.generation.chat import ChatOptions, prepare_chat
from qwenapi.generation.prompt import beside_others
from qwenapi.generation.sampling import check_token_ids
from qwenapi.http.body import accepts
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import (
    choose_profile,
    current_profile,
    load_body,
)
from qwenapi.request_context.services import image_reader, served_model
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import ModelCard

# Paths of the machine that made the files; nobody else's business.
_FILES = ("vocab_file", "merges_file", "tokenizer_file", "name_or_path")


def register(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/tokenize", view_func=tokenize, methods=["POST"])
    blueprint.add_url_rule("/detokenize", view_func=detokenize, methods=["POST"])
    for rule in ("/tokenizer_info", "/v1/tokenizer_info"):
        blueprint.add_url_rule(rule, view_func=tokenizer_info)


@accepts(TokenizeSchema, before=choose_profile, load=load_body)
def tokenize(ask: TokenizeRequest) -> Response:
    card, tokenizer = served_model(None)
    ids = _encode(ask, card, tokenizer)
    names = None
    if ask.return_token_strs:
        names = beside_others(len(ids), lambda: tokenizer.names(ids))
    body = {"count": len(ids), "max_model_len": card.max_model_len}
    return json_response(body | {"tokens": ids, "token_strs": names})


@accepts(DetokenizeSchema, before=choose_profile, load=load_body)
def detokenize(ask: DetokenizeRequest) -> Response:
    card, tokenizer = served_model(None)
    check_token_ids(ask.tokens, card.vocab_size, "tokens")
    text = beside_others(
        len(ask.tokens), lambda: tokenizer.decode(ask.tokens, skip_special_tokens=False)
    )
    return json_response({"prompt": text})


def tokenizer_info() -> Response:
    """Answer with tokenizer_config.json as transformers has it in memory, less the paths."""
    _, tokenizer = served_model(None)
    config = {name: _plain(it) for name, it in tokenizer.config.items() if name not in _FILES}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    if tokenizer.template_source:
        config["chat_template"] = tokenizer.template_source
    return json_response(config)


def _encode(ask: TokenizeRequest, card: ModelCard, tokenizer: Tokenizer) -> list[int]:
    if ask.chat is None:
        text = ask.prompt or ""
        return beside_others(len(text), lambda: tokenizer.encode(text, ask.add_special_tokens))
    profile = current_profile()
    options = ChatOptions.of(profile.settings)
    prompt = chat_prompt(ask.chat, profile)
    ids = prepare_chat(tokenizer, prompt, options, image_reader(card)).ids
    return tokenizer.bounded(ids) if ask.add_special_tokens else ids


def _plain(value: Any) -> Any:
    """Return a token that is written as an object, at any depth, as its text."""
    if isinstance(value, Mapping):
        return value["content"] if "content" in value else {k: _plain(v) for k, v in value.items()}
    return list(map(_plain, value)) if isinstance(value, list) else value
