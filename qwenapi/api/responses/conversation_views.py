"""Views of conversations of items: begun, read, labelled, added to and erased."""

from collections.abc import Iterator
from typing import Any

from flask import Response, request

from qwenapi.api.responses import conversation, state
from qwenapi.api.responses.items import Item
from qwenapi.api.responses.paging import page
from qwenapi.api.responses.schemas import (
    ConversationRequest,
    ConversationSchema,
    ItemsSchema,
    MetadataSchema,
)
from qwenapi.api.responses.views import blueprint
from qwenapi.errors import NotFound
from qwenapi.http.body import accepts
from qwenapi.http.paging import in_order
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import count_request, load_body


def _count(body: dict[str, Any]) -> None:
    count_request()


@blueprint.post("/v1/conversations")
@accepts(ConversationSchema, before=_count, load=load_body)
def create_conversation(ask: ConversationRequest) -> Response:
    items = conversation.new_items(state.resolved(ask.items))
    return json_response(conversation.body_of(conversation.create(items, ask.metadata)))


@blueprint.get("/v1/conversations/<conversation_id>")
def retrieve_conversation(conversation_id: str) -> Response:
    return json_response(conversation.body_of(conversation_id))


@blueprint.post("/v1/conversations/<conversation_id>")
@accepts(MetadataSchema, before=_count, load=load_body)
def label_conversation(ask: ConversationRequest, conversation_id: str) -> Response:
    conversation.label(conversation_id, ask.metadata)
    return json_response(conversation.body_of(conversation_id))


@blueprint.delete("/v1/conversations/<conversation_id>")
def delete_conversation(conversation_id: str) -> Response:
    conversation.delete(conversation_id)
    return json_response({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


@blueprint.get("/v1/conversations/<conversation_id>/items")
def list_items(conversation_id: str) -> Response:
    def found(newest_first: bool) -> Iterator[Item]:
        return conversation.items_in(conversation_id, newest_first=newest_first)

    return json_response(page(found, request.args))


@blueprint.post("/v1/conversations/<conversation_id>/items")
@accepts(ItemsSchema, before=_count, load=load_body)
def add_items(ask: ConversationRequest, conversation_id: str) -> Response:
    items = conversation.new_items(state.resolved(ask.items))
    conversation.add(conversation_id, items)
    return json_response(page(in_order(items), {"order": "asc", "limit": "100"}))


@blueprint.get("/v1/conversations/<conversation_id>/items/<item_id>")
def retrieve_item(conversation_id: str, item_id: str) -> Response:
    for item in conversation.items_in(conversation_id):
        if item["id"] == item_id:
            return json_response(item)
    raise NotFound(f"Item with id '{item_id[: conversation.MAX_SHOWN_CHARS]}' not found.")
