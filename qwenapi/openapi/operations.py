"""The operations of the OpenAPI document: what each address takes and gives. Pure data."""

from dataclasses import dataclass

from marshmallow import Schema

from qwenapi.api.anthropic.schemas import CountTokensSchema, MessagesSchema
from qwenapi.api.batches.schemas import BatchSchema, FileSchema
from qwenapi.api.coder.schemas import CodeSchema
from qwenapi.api.generate.schemas import GenerateSchema
from qwenapi.api.openai.pooling_schemas import EmbeddingSchema, RerankSchema, ScoreSchema
from qwenapi.api.openai.schemas import ChatSchema, CompletionSchema
from qwenapi.api.openai.token_schemas import DetokenizeSchema, TokenizeSchema
from qwenapi.api.responses.paging import MAX_LIMIT
from qwenapi.api.responses.schemas import (
    ConversationSchema,
    InputTokensSchema,
    ItemsSchema,
    MetadataSchema,
    ResponsesSchema,
)

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
EVENTS, TEXT = "text/event-stream", "text/plain"
PARTS, BYTES = "multipart/form-data", "application/octet-stream"

_TAKES_A_BODY = (400, 413, 415, 422)
_GENERATES = (*_TAKES_A_BODY, 429, 500, 503)
_KEEPS = (*_TAKES_A_BODY, 404, 429, 503, 507)
KEY_ERRORS = (401, 403)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one address. `body` names one of BODIES, "" meaning none; `query` some of
    QUERY.
    """

    tag: str
    schema: type[Schema] | None = None
    takes: tuple[str, ...] = (JSON,)
    query: tuple[str, ...] = ()
    body: str = ""
    status: int = 200
    also: str = ""  # another type of the answer: a stream, or text
    errors: tuple[int, ...] = ()
    is_public: bool = False


QUERY: dict[str, dict[str, object]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
    "order": {"enum": ["asc", "desc"]},
    "after": {"type": "string"},
}
_PAGE = tuple(QUERY)

OPERATIONS: dict[str, Operation] = {
    "POST /v1/chat/completions": Operation(
        tag="openai",
        schema=ChatSchema,
        body="ChatCompletion",
        also=EVENTS,
        errors=(*_GENERATES, 404),
    ),
    "POST /v1/completions": Operation(
        tag="openai",
        schema=CompletionSchema,
        body="Completion",
        also=EVENTS,
        errors=(*_GENERATES, 404),
    ),
    "POST /v1/embeddings": Operation(
        tag="openai", schema=EmbeddingSchema, body="Embeddings", errors=(*_GENERATES, 404)
    ),
    "POST /v1/rerank": Operation(
        tag="openai", schema=RerankSchema, body="Ranking", errors=(*_GENERATES, 404)
    ),
    "POST /v1/score": Operation(
        tag="openai", schema=ScoreSchema, body="Scores", errors=(*_GENERATES, 404)
    ),
    "GET /v1/models": Operation(tag="openai", body="ModelList", errors=(503,)),
    "GET /v1/models/{model}": Operation(tag="openai", body="Model", errors=(404, 503)),
    "POST /tokenize": Operation(
        tag="openai",
        schema=TokenizeSchema,
        body="Tokens",
        errors=(*_TAKES_A_BODY, 404, 429, 503),
    ),
    "POST /detokenize": Operation(
        tag="openai",
        schema=DetokenizeSchema,
        body="TokensText",
        errors=(*_TAKES_A_BODY, 404, 429, 503),
    ),
    "GET /tokenizer_info": Operation(tag="openai", body="TokenizerInfo", errors=(503,)),
    "POST /v1/responses": Operation(
        tag="responses",
        schema=ResponsesSchema,
        body="Response",
        also=EVENTS,
        errors=(*_GENERATES, 404, 507),
    ),
    "POST /v1/responses/input_tokens": Operation(
        tag="responses",
        schema=InputTokensSchema,
        body="InputTokenCount",
        errors=(*_TAKES_A_BODY, 404, 429, 503),
    ),
    "GET /v1/responses/{response_id}": Operation(
        tag="responses", body="Response", errors=(400, 404, 503)
    ),
    "DELETE /v1/responses/{response_id}": Operation(
        tag="responses", body="Deleted", errors=(404, 503)
    ),
    "POST /v1/responses/{response_id}/cancel": Operation(
        tag="responses", body="Response", errors=(400, 404, 503)
    ),
    "GET /v1/responses/{response_id}/input_items": Operation(
        tag="responses", query=_PAGE, body="ItemList", errors=(400, 404, 503)
    ),
    "POST /v1/conversations": Operation(
        tag="responses", schema=ConversationSchema, body="ItemConversation", errors=_KEEPS
    ),
    "GET /v1/conversations/{conversation_id}": Operation(
        tag="responses", body="ItemConversation", errors=(404, 503)
    ),
    "POST /v1/conversations/{conversation_id}": Operation(
        tag="responses", schema=MetadataSchema, body="ItemConversation", errors=_KEEPS
    ),
    "DELETE /v1/conversations/{conversation_id}": Operation(
        tag="responses", body="Deleted", errors=(404, 503)
    ),
    "GET /v1/conversations/{conversation_id}/items": Operation(
        tag="responses", query=_PAGE, body="ItemList", errors=(400, 404, 503)
    ),
    "POST /v1/conversations/{conversation_id}/items": Operation(
        tag="responses", schema=ItemsSchema, body="ItemList", errors=_KEEPS
    ),
    "GET /v1/conversations/{conversation_id}/items/{item_id}": Operation(
        tag="responses", body="Item", errors=(404, 503)
    ),
    "POST /v1/messages": Operation(
        tag="anthropic",
        schema=MessagesSchema,
        body="Message",
        also=EVENTS,
        errors=(*_GENERATES, 404, 529),
    ),
    "POST /v1/messages/count_tokens": Operation(
        tag="anthropic",
        schema=CountTokensSchema,
        body="TokenCount",
        errors=(*_TAKES_A_BODY, 404, 429, 503),
    ),
    "POST /v1/files": Operation(
        tag="batches",
        schema=FileSchema,
        takes=(PARTS,),
        body="File",
        errors=(*_TAKES_A_BODY, 429, 503, 507),
    ),
    "GET /v1/files": Operation(tag="batches", body="FileList", errors=(400, 503)),
    "GET /v1/files/{file_id}": Operation(tag="batches", body="File", errors=(400, 404, 503)),
    "DELETE /v1/files/{file_id}": Operation(tag="batches", body="Deleted", errors=(400, 404, 503)),
    "GET /v1/files/{file_id}/content": Operation(tag="batches", also=BYTES, errors=(400, 404, 503)),
    "POST /v1/batches": Operation(
        tag="batches", schema=BatchSchema, body="Batch", errors=(*_TAKES_A_BODY, 429, 503)
    ),
    "GET /v1/batches": Operation(tag="batches", body="BatchList", errors=(400, 503)),
    "GET /v1/batches/{batch_id}": Operation(tag="batches", body="Batch", errors=(400, 404, 503)),
    "POST /v1/batches/{batch_id}/cancel": Operation(
        tag="batches", body="Batch", errors=(400, 404, 429, 503)
    ),
    "POST /generate": Operation(
        tag="generate", schema=GenerateSchema, body="GeneratedTexts", errors=_GENERATES
    ),
    "POST /v1/code/generate": Operation(
        tag="coder", schema=CodeSchema, takes=(FORM, JSON), body="GeneratedCode", errors=_GENERATES
    ),
    "POST /v1/code/chat_stream": Operation(
        tag="coder",
        schema=CodeSchema,
        takes=(FORM, JSON),
        also=EVENTS,
        errors=(*_GENERATES, 404, 507),
    ),
    "GET /v1/code/conversations/{conversation_id}": Operation(
        tag="coder", body="Conversation", errors=(404, 503)
    ),
    "DELETE /v1/code/conversations/{conversation_id}": Operation(
        tag="coder", status=204, errors=(404, 503)
    ),
    "GET /livez": Operation(tag="operations", body="Health", is_public=True),
    "GET /readyz": Operation(tag="operations", body="Health", errors=(503,), is_public=True),
    "GET /health": Operation(tag="operations", body="Health", errors=(503,), is_public=True),
    "GET /": Operation(tag="operations", body="Description", errors=(404,), is_public=True),
    "GET /api/v1/metrics": Operation(tag="operations", body="Metrics"),
    "GET /stats": Operation(tag="operations", body="Stats"),
    "GET /metrics": Operation(tag="operations", body="Metrics", also=TEXT),
    "GET /metrics/prometheus": Operation(tag="operations", also=TEXT),
    "GET /version": Operation(tag="operations", body="Version", is_public=True),
    "GET /load": Operation(tag="operations", body="Load"),
}
# Other spellings of an address above, for old pages and proxies.
ALIASES = {
    "/api/chat/completions": "/v1/chat/completions",
    "/chat/completions": "/v1/chat/completions",
    "/v2/rerank": "/v1/rerank",
    "/rerank": "/v1/rerank",
    "/score": "/v1/score",
    "/v1/tokenizer_info": "/tokenizer_info",
    "/v1/v1/metrics": "/api/v1/metrics",
}
