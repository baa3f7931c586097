"""Views of OpenAI's interface: chat completions and completions, whole or streamed, and models."""

import dataclasses
import re
from typing import Any, cast

from flask import Blueprint, Response, g

from qwenapi.api.openai import render
from qwenapi.api.openai.completion_writer import CompletionWriter
from qwenapi.api.openai.schemas import (
    ChatRequest,
    ChatSchema,
    CompletionRequest,
    CompletionSchema,
)
from qwenapi.api.openai.token_fields import Prompt
from qwenapi.api.openai.writer import ChatWriter, Writer
from qwenapi.errors import BadRequest, EngineUnavailable, ModelNotFound
from qwenapi.generation.answer_format import grammar_for
from qwenapi.generation.chat import ChatOptions, ChatPrompt, prepare_chat
from qwenapi.generation.prompt import (
    bad_word_ids,
    beside_others,
    cut_prompt,
    fill_in_the_middle,
    fim_stops,
)
from qwenapi.generation.sampling import (
    SamplingRequest,
    check_token_ids,
    defaults_in_force,
    defaults_of,
)
from qwenapi.generation.stream import GenerationStream
from qwenapi.http.body import accepts
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import (
    caller,
    choose_profile,
    current_profile,
    generation_request,
    load_body,
)
from qwenapi.request_context.respond import respond
from qwenapi.request_context.services import image_reader, served_model, services
from qwenapi.settings.profile import Profile
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import ModelCard

blueprint = Blueprint("openai", __name__)


# The browser document's page asks below /api, its drawing without any prefix.
@blueprint.post("/v1/chat/completions")
@blueprint.post("/api/chat/completions", endpoint="chat_completions_of_page")
@blueprint.post("/chat/completions", endpoint="chat_completions_bare")
@accepts(ChatSchema, before=choose_profile, load=load_body)
def chat_completions(ask: ChatRequest) -> Response:
    card, tokenizer = served_model()
    profile = current_profile()
    settings = profile.settings
    options = ChatOptions.of(settings)
    chat = prepare_chat(tokenizer, chat_prompt(ask, profile), options, image_reader(card))
    if chat.images and ask.truncate_prompt_tokens is not None:
        raise BadRequest("A prompt with pictures is not cut.", param="truncate_prompt_tokens")
    wanted, cut = generation_request(
        ask,
        [_cut(chat.ids, ask, card)],
        card,
        profile.chat_max_tokens,
        grammar=chat.grammar,
        by_token=chat.thinking != "off",
        bad_words=bad_word_ids(tokenizer, ask.bad_words),
        images=chat.images,
    )

    def write(stream: GenerationStream) -> Writer:
        return ChatWriter(
            stream,
            ask,
            profile,
            tokenizer,
            wanted,
            chat=chat,
            reasoning_field=cast("render.ReasoningField", settings.reasoning_field),
            shows_reasoning=ask.include_reasoning,
        )

    return respond(wanted, tokenizer, write, streams=ask.stream, cut=g.clamped | cut)


def chat_prompt(ask: ChatRequest, profile: Profile) -> ChatPrompt:
    """Return what a conversation asks of the template, which the profile may have a say in."""
    thinking = profile.thinking if ask.enable_thinking is None else ask.enable_thinking
    return ChatPrompt(
        messages=ask.messages,
        tools=ask.tools,
        tool_choice=ask.tool_choice,
        parallel_tool_calls=ask.parallel_tool_calls,
        template_arguments={**ask.template_arguments, "enable_thinking": thinking},
        continues=ask.continue_final_message,
        add_generation_prompt=ask.add_generation_prompt,
        answer_format=ask.answer_format,
        max_thought_tokens=ask.max_thought_tokens,
    )


@blueprint.post("/v1/completions")
@accepts(CompletionSchema, before=choose_profile, load=load_body)
def completions(ask: CompletionRequest) -> Response:
    card, tokenizer = served_model()
    for prompt in ask.prompts:
        if not isinstance(prompt, str):
            check_token_ids(prompt, card.vocab_size, "prompt")
    size = sum(len(prompt) for prompt in ask.prompts)
    prompts = beside_others(size, lambda: [_encode(tokenizer, ask, p) for p in ask.prompts])
    profile = current_profile()
    grammar = grammar_for(ask.answer_format, tokenizer)
    wanted, cut = generation_request(
        _to_engine(ask, tokenizer),
        [_cut(ids, ask, card) for ids in prompts],
        card,
        profile.completion_max_tokens,
        grammar=grammar,
        bad_words=bad_word_ids(tokenizer, ask.bad_words),
    )

    def write(stream: GenerationStream) -> Writer:
        return CompletionWriter(stream, ask, profile, tokenizer, wanted)

    return respond(wanted, tokenizer, write, streams=ask.stream, cut=g.clamped | cut)


@blueprint.get("/v1/models")
def models() -> Response:
    return json_response(render.model_list(list(_model_cards().values())))


@blueprint.get("/v1/models/<path:model>")
def model(model: str) -> Response:
    """Answer with one entry of the list; slashes of a name may be encoded, or doubled."""
    cards = _model_cards()
    for name, found in cards.items():
        if _plain(name) == _plain(model):
            return json_response(found | _facts(name))
    raise ModelNotFound(model, tuple(cards))


def _facts(name: str) -> dict[str, Any]:
    """Return what a name is served for, and with which sampling defaults or how long vectors; for
    profiles whose document prints no body of it.
    """
    card, profile = services().engine.card, services().profiles.for_model(name)
    if card is None or not profile.as_openai:
        return {}
    facts: dict[str, Any] = {"task": card.task}
    if card.task == "generate":
        defaults = defaults_of(profile.settings, profile.chat_max_tokens)
        facts["default_sampling_params"] = defaults_in_force(card, defaults)
        sees = services().tokenizers.vision_of(card) is not None
        facts["input_modalities"] = ["text", "image"] if sees else ["text"]
    return facts | ({"dimensions": card.output_size} if card.task == "embed" else {})


def _model_cards() -> dict[str, dict[str, Any]]:
    """Return what is said of each name that the caller's key may ask for."""
    card, names = services().engine.card, services().profiles.names_for(caller().models)
    if card is None:
        raise EngineUnavailable(retry_after=1)
    since, length = services().tokenizers.since, card.max_model_len
    return {
        name: render.model_card(name, root=names[0], created=since, max_model_len=length)
        for name in names
    }


def _plain(name: str) -> str:
    """Return a name as it is left where an address loses doubled slashes and those at its ends."""
    return re.sub("/+", "/", name).strip("/")


def _encode(tokenizer: Tokenizer, ask: CompletionRequest, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, ask.add_special_tokens)
    else:
        ids = list(prompt)
    return ids if ask.suffix is None else fill_in_the_middle(tokenizer, ids, ask.suffix)


def _to_engine(ask: CompletionRequest, tokenizer: Tokenizer) -> CompletionRequest:
    """Return what the engine has to be asked, so that what the caller asks for can be written."""
    asked = dataclasses.replace(ask, n=ask.best_of)
    if ask.max_tokens == 0:
        asked = dataclasses.replace(asked, max_tokens=1)
    if ask.echo and ask.logprobs is not None:
        count = max(ask.logprobs, ask.prompt_logprobs or 0)
        asked = dataclasses.replace(asked, prompt_logprobs=count)
    if ask.best_of > ask.n and ask.logprobs is None:
        asked = dataclasses.replace(asked, logprobs=0)
    if ask.suffix is not None:
        stops = ask.stop_token_ids + fim_stops(tokenizer)
        asked = dataclasses.replace(asked, stop_token_ids=stops)
    return asked


def _cut(ids: list[int], ask: SamplingRequest, card: ModelCard) -> list[int]:
    return cut_prompt(ids, ask.truncate_prompt_tokens, ask.max_tokens, card.max_model_len)
