"""Views of the Responses interface: answers whole, streamed or in the background; what is kept."""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from flask import Blueprint, Response, g, request

from qwenapi.api.responses import conversation, render, state
from qwenapi.api.responses.background import BackgroundRun
from qwenapi.api.responses.items import Item, named
from qwenapi.api.responses.paging import page
from qwenapi.api.responses.prompt import prepare
from qwenapi.api.responses.schemas import InputTokensSchema, ResponseRequest, ResponsesSchema
from qwenapi.api.responses.writer import ResponseWriter
from qwenapi.conversations import RESPONSE_PREFIX, Turn
from qwenapi.errors import BadRequest
from qwenapi.generation.chat import PreparedChat
from qwenapi.generation.request import GenerationRequest
from qwenapi.generation.sampling import clamped_header
from qwenapi.greenlets import spawn_unattended
from qwenapi.http.body import accepts
from qwenapi.http.paging import in_order
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import (
    caller,
    choose_profile,
    current_profile,
    generation_request,
    load_body,
    new_stream,
)
from qwenapi.request_context.respond import respond
from qwenapi.request_context.services import conversations, image_reader, served_model
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import ModelCard

blueprint = Blueprint("responses", __name__)


@blueprint.post("/v1/responses")
@accepts(ResponsesSchema, before=choose_profile, load=load_body)
def create(ask: ResponseRequest) -> Response:
    id_ = f"{RESPONSE_PREFIX}{uuid.uuid4().hex}"
    ask = replace(ask, items=tuple(named(state.resolved(ask.items), id_)))
    if ask.conversation is None:
        return _answer(id_, ask, state.history_of(ask.previous_response_id), _keep(ask))
    turn = conversation.begin(ask.conversation, ask.items)
    try:
        history = conversation.history_of(turn, drops_oldest=ask.drops_oldest)
        response = _answer(id_, ask, history, partial(_keep_in_turn, ask, turn))
    except BaseException:
        turn.rollback()
        raise
    response.call_on_close(turn.rollback)  # after a commit it does nothing
    return response


def _answer(
    id_: str,
    ask: ResponseRequest,
    history: list[Item],
    keep: Callable[[render.Payload], None],
) -> Response:
    card, tokenizer = served_model()
    chat = _prepared(ask, history, card, tokenizer)
    wanted, cut = generation_request(
        ask,
        [chat.ids],
        card,
        current_profile().chat_max_tokens,
        grammar=chat.grammar,
        by_token=chat.thinking != "off" or ask.logprobs is not None,
        images=chat.images,
    )
    begun = _begun(id_, ask, wanted)
    new_writer = partial(
        ResponseWriter,
        chat=chat,
        ask=ask,
        begun=begun,
        bytes_of=tokenizer.token_bytes.__getitem__,
    )
    cut = {("max_output_tokens" if name == "max_tokens" else name): cut[name] for name in cut}
    cut = g.clamped | cut
    if ask.background:
        answer = json_response(_run_on(ask, wanted, tokenizer, begun, new_writer))
        answer.headers.update(clamped_header(cut))
        return answer
    write = partial(new_writer, keep=keep)
    return respond(wanted, tokenizer, write, streams=ask.stream, cut=cut)


def _keep(ask: ResponseRequest) -> Callable[[render.Payload], None]:
    """Return what keeps an ended response by itself; it is called without a request."""
    tenant, store = caller().tenant, conversations().responses

    def keep(body: render.Payload) -> None:
        if ask.store:
            with state.errors_of(body["id"]):
                store.keep(tenant, state.stored(body, ask.items))

    return keep


def _keep_in_turn(ask: ResponseRequest, turn: Turn, body: render.Payload) -> None:
    """Keep an ended response as a turn of its conversation and, if it is to be, by itself."""
    kept = state.stored(body, ask.items)
    with conversation.errors_of(turn.conversation_id):
        turn.commit(kept.turn.assistant, body["status"], kept if ask.store else None)


def _run_on(
    ask: ResponseRequest,
    wanted: GenerationRequest,
    tokenizer: Tokenizer,
    begun: render.Payload,
    new_writer: Callable[..., ResponseWriter],
) -> render.Payload:
    """Return a response that runs on from now, once an engine has accepted it and it is kept."""
    queued = begun | {"status": "queued"}
    stream = new_stream(tokenizer, outlives_caller=True)
    try:
        stream.ask(wanted)
        with state.errors_of(begun["id"]):
            running = conversations().responses.begin(
                caller().tenant, state.stored(queued, ask.items), owner=g.request_id
            )
    except BaseException as error:
        stream.close(error)
        raise
    wording = current_profile().wording(g.request_id)
    run = BackgroundRun(running, stream, begun, ask.items, wording)
    writer = new_writer(stream, keep=run.keep)
    spawn_unattended(lambda: run.run(writer))
    return queued


@blueprint.post("/v1/responses/input_tokens")
@accepts(InputTokensSchema, before=choose_profile, load=load_body)
def count_input_tokens(ask: ResponseRequest) -> Response:
    card, tokenizer = served_model()
    ask = replace(ask, items=tuple(state.resolved(ask.items)))
    if ask.conversation is None:
        history = state.history_of(ask.previous_response_id)
    else:
        drops_oldest = ask.drops_oldest
        history = conversation.prompt_items(ask.conversation, drops_oldest=drops_oldest)
    count = len(_prepared(ask, history, card, tokenizer).ids)
    return json_response({"object": "response.input_tokens", "input_tokens": count})


@blueprint.get("/v1/responses/<response_id>")
def retrieve(response_id: str) -> Response:
    if request.args.get("stream", "false").lower() not in ("false", "0"):
        message = "'stream' asks to go on with a stream, which this server does not support."
        raise BadRequest(message, param="stream")
    return json_response(state.body_of(state.find(response_id)))


@blueprint.delete("/v1/responses/<response_id>")
def delete(response_id: str) -> Response:
    with state.errors_of(response_id):
        conversations().responses.delete(caller().tenant, response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@blueprint.post("/v1/responses/<response_id>/cancel")
def cancel(response_id: str) -> Response:
    found = state.find(response_id)
    body = state.body_of(found)
    if not body["background"]:
        raise BadRequest("Cannot cancel a synchronous response.", param="response_id")
    if found.is_running:
        cancelled = body | {"status": "cancelled"}
        with state.errors_of(response_id):
            kept = state.stored(cancelled, state.input_of(found))
            was_running = conversations().responses.cancel(caller().tenant, kept)
        body = cancelled if was_running else state.body_of(state.find(response_id))
    return json_response(body)


@blueprint.get("/v1/responses/<response_id>/input_items")
def input_items(response_id: str) -> Response:
    items = state.input_of(state.find(response_id))
    return json_response(page(in_order(items), request.args))


def _prepared(
    ask: ResponseRequest, history: list[Item], card: ModelCard, tokenizer: Tokenizer
) -> PreparedChat:
    return prepare(
        ask,
        [*history, *ask.items],
        profile=current_profile(),
        tokenizer=tokenizer,
        context=card.max_model_len,
        reader=image_reader(card),
    )


def _begun(id_: str, ask: ResponseRequest, wanted: GenerationRequest) -> render.Payload:
    """Return a response as it begins, with the sampling that is in force."""
    ((_, params),) = wanted.prompts
    sampling = {
        name: getattr(params if getattr(ask, name) is None else ask, name)
        for name in ("temperature", "top_p")
    }
    model = current_profile().canonical
    return render.response_body(id_, int(time.time()), model, {**ask.told, **sampling})
