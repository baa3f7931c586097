"""ApiError: what a caller may be told went wrong, one tree, and its form in each error dialect.

The class knows the status, OpenAI's `type` and `code`, and a fixed public sentence; an instance may
say it more exactly, in our own words and never in an exception's. Knows nothing of Flask.

    ApiError 500
    ├── BadRequest 400 ── ContextLengthExceeded · ToolsUnsupported · TaskUnsupported
    ├── Unauthorized 401 · Forbidden 403 · RateLimited 429 · UnknownHost 400
    ├── NotFound 404 ── ModelNotFound · PreviousResponseNotFound
    ├── MethodNotAllowed 405 · PayloadTooLarge 413 · UnsupportedMediaType 415
    ├── RequestQuarantined 422
    ├── EngineUnavailable 503 ── QueueFull · ModelChanged · ServerShutdown ── ServerDraining
    ├── InsufficientStorage 507
    └── InternalError 500 ── EngineFailed ── EngineCrash

Other errors become one of these where they meet a request: text/errors.py in http/body.py and
generation/prompt.py, conversations/errors.py in request_context/storage_errors.py, an engine's
words in generation/engine_errors.py. workers/errors.py is for the operator: it ends a start.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

# Kinds of BadRequest that some documents answer with 422: the body has the wrong shape.
MALFORMED = frozenset({"json", "missing", "type"})
FASTAPI_KINDS = {
    "json": "json_invalid",
    "missing": "missing",
    "type": "type_error",
    "value": "value_error",
}

# Anthropic's code for a service that has too much to do, and its types of errors by their status.
OVERLOADED = 529
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    OVERLOADED: "overloaded_error",
}


class ApiError(Exception):
    """Base of every refusal and failure a caller sees. `retry_after` is in seconds."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    sentence: ClassVar[str] = "The server failed to answer."

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message or self.sentence
        self.param = param
        self.retry_after = retry_after
        self.extra_headers = dict(headers or {})
        super().__init__(self.message)

    @property
    def name(self) -> str:
        """Return what the metrics call it."""
        return self.code or self.type

    @property
    def headers(self) -> dict[str, str]:
        """Return the answer's headers: whole seconds for all, milliseconds for OpenAI's clients."""
        if self.retry_after is None:
            return self.extra_headers
        return self.extra_headers | {
            "Retry-After": str(max(1, math.ceil(self.retry_after))),
            "retry-after-ms": str(math.ceil(self.retry_after * 1000)),
        }


class BadRequest(ApiError):
    """A fault of the caller's. `kind`: json, missing or type (the wrong shape), else value."""

    status = 400
    type = "invalid_request_error"
    sentence = "The request is not valid."

    def __init__(self, message: str | None = None, *, kind: str = "value", **rest: Any) -> None:
        super().__init__(message, **rest)
        self.kind = kind


class ContextLengthExceeded(BadRequest):
    """A prompt that leaves no room for an answer; `openai_message` and `anthropic_message`: in the
    words that their clients search for.
    """

    code = "context_length_exceeded"
    sentence = "The prompt is longer than the model's context."

    def __init__(self, context: int = 0, prompt: int = 0, *, is_answered: bool = True) -> None:
        remedy = "Shorten it so that at least one token is left for the answer."
        if not is_answered:
            remedy = "Shorten it."
        ours = f"The model's context is {context} tokens, the prompt has {prompt}. {remedy}"
        super().__init__(ours if context else None)
        self.openai_message = self.anthropic_message = self.message
        if context:
            self.anthropic_message = (
                f"prompt is too long: {prompt} tokens > {context - 1} maximum. {remedy}"
            )
            self.openai_message = (
                f"This model's maximum context length is {context} tokens. However, your prompt has"
                f" {prompt} tokens. {remedy}"
            )


class ToolsUnsupported(BadRequest):
    """The model's chat template knows no tools."""

    code = "tools_unsupported"
    sentence = "This model's chat template has no place for tools, so it cannot call any."


class TaskUnsupported(BadRequest):
    """What is asked for is not what the model is served for."""

    code = "task_unsupported"
    sentence = "The model is not served for this."
    SERVED = {
        "generate": "It generates text: see /v1/chat/completions and /v1/completions.",
        "embed": "It makes embeddings: see /v1/embeddings.",
        "rerank": "It scores documents: see /v1/rerank and /v1/score.",
    }

    def __init__(self, served: str) -> None:
        super().__init__(f"{self.sentence} {self.SERVED[served]}", param="model")


class Unauthorized(ApiError):
    """No key, several, or one that is not in force: the caller is not told which."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    sentence = "The API key is missing or not valid. Send it as 'Authorization: Bearer KEY'."

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": "Bearer"})


class Forbidden(ApiError):
    """The key is in force, but is not for this."""

    status = 403
    type = "invalid_request_error"
    code = "missing_scope"
    sentence = "The API key is not for this."

    def __init__(self, scope: str) -> None:
        super().__init__(f"The API key lacks the scope '{scope}'.")


class RateLimited(ApiError):
    """The caller's own limit is reached, not one of the service."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    sentence = "This key's limit is reached. Wait, then try again."


class UnknownHost(ApiError):
    status = 400
    type = "invalid_request_error"
    code = "unknown_host"
    sentence = "The request names a host that is not served here."


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    sentence = "There is nothing at this address."


class ModelNotFound(NotFound):
    """A name that is not served; the message lists those that are."""

    code = "model_not_found"
    MAX_NAME_CHARS = 100

    def __init__(self, model: str, served: Sequence[str]) -> None:
        shown = model[: self.MAX_NAME_CHARS]
        names = ", ".join(f"'{name}'" for name in served)
        super().__init__(f"The model '{shown}' is not served here. Served: {names}.", param="model")


class PreviousResponseNotFound(NotFound):
    """An answer to go on from that is not kept here, or not for this caller."""

    code = "previous_response_not_found"

    def __init__(self, response_id: str) -> None:
        message = f"Previous response with id '{response_id}' not found."
        super().__init__(message, param="previous_response_id")


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    sentence = "This address does not answer this method."


class PayloadTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    sentence = "The body is too large."


class UnsupportedMediaType(ApiError):
    status = 415
    type = "invalid_request_error"
    sentence = "The body must be uncompressed JSON, sent as Content-Type: application/json."


class RequestQuarantined(ApiError):
    status = 422
    type = "invalid_request_error"
    code = "request_quarantined"
    sentence = "This request has ended engines a short while ago, and is refused for ten minutes."


class EngineUnavailable(ApiError):
    status = 503
    code = "engine_unavailable"
    sentence = "No engine is ready. Wait, then try again."


class QueueFull(EngineUnavailable):
    """The engine's queue is full; its figures are kept for dialects that print them."""

    code = "queue_full"
    sentence = "The server is busy and its queue is full. Wait, then try again."

    def __init__(self, queue_size: int, max_queue_size: int, retry_after: float = 1) -> None:
        super().__init__(retry_after=retry_after)
        self.queue_size = queue_size
        self.max_queue_size = max_queue_size


class QueueTimeout(EngineUnavailable):
    sentence = "The request waited too long for its turn. Wait, then try again."


class ServerShutdown(EngineUnavailable):
    code = "server_shutdown"
    sentence = "The server is stopping before this answer is complete. Send the request again."


class ServerDraining(ServerShutdown):
    sentence = "The server is about to stop and takes no new requests. Wait, then send it again."


class ModelChanged(EngineUnavailable):
    code = "model_changed"
    sentence = "Another model is served now, which cannot go on with this answer. Send it again."


class InsufficientStorage(ApiError):
    status = 507
    code = "storage_full"
    sentence = "There is no room to keep this."


class InternalError(ApiError):
    code = "internal_error"


class EngineFailed(InternalError):
    code = "engine_failed"
    sentence = "The engine failed while it answered. The request may be sent again."


class EngineCrash(EngineFailed):
    code = "engine_crash"
    sentence = "The engine ended each time it computed this request, which is refused for a while."


class RenderedError(NamedTuple):
    """An error in the words of a dialect."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What a profile says in its own words, and the request the error belongs to.

    `malformed_status` answers a body of the wrong shape; other faults of the caller stay 400.
    """

    request_id: str
    malformed_status: int = 400
    as_openai: bool = False
    failure_prefix: str = ""
    loading_message: str = ""
    busy_message: str = ""

    def status(self, error: ApiError) -> int:
        is_malformed = isinstance(error, BadRequest) and error.kind in MALFORMED
        return self.malformed_status if is_malformed else error.status

    def message(self, error: ApiError) -> str:
        """Return the sentence for the caller; a failure of ours names the request, to find it."""
        if isinstance(error, QueueFull) and self.busy_message:
            return self.busy_message
        if type(error) is EngineUnavailable and self.loading_message:
            return self.loading_message
        if isinstance(error, ContextLengthExceeded) and self.as_openai:
            return error.openai_message
        if error.status == 500:
            return f"{self.failure_prefix}{error.message} (request {self.request_id})"
        return error.message


class Dialect(Protocol):
    """An error dialect: the form in which callers of a profile read an error."""

    def __call__(self, error: ApiError, wording: Wording) -> RenderedError: ...


def render_openai(error: ApiError, wording: Wording) -> RenderedError:
    """Render an error as OpenAI does."""
    body = {
        "message": wording.message(error),
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return RenderedError(wording.status(error), {"error": body}, error.headers)


def render_fastapi(error: ApiError, wording: Wording) -> RenderedError:
    """Render an error as FastAPI does: a sentence, or for a caller's fault a list of faults."""
    if isinstance(error, BadRequest):
        kind = FASTAPI_KINDS[error.kind]
        is_prompt = isinstance(error, ContextLengthExceeded)
        location = _location("prompt" if is_prompt else error.param)
        fault = {"type": kind, "loc": ["body", *location], "msg": error.message}
        return RenderedError(422, {"detail": [fault]}, error.headers)
    return RenderedError(error.status, {"detail": wording.message(error)}, error.headers)


def render_flat(error: ApiError, wording: Wording) -> RenderedError:
    """Render an error as one string, with the queue's figures where it is full."""
    body: dict[str, Any] = {"error": wording.message(error)}
    if isinstance(error, QueueFull):
        body |= {"queue_size": error.queue_size, "max_queue_size": error.max_queue_size}
    return RenderedError(wording.status(error), body, error.headers)


def render_anthropic(error: ApiError, wording: Wording) -> RenderedError:
    """Render an error as Anthropic does; a full queue is 529 there."""
    is_full = isinstance(error, QueueFull | QueueTimeout)
    status = OVERLOADED if is_full else wording.status(error)
    kind = ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = wording.message(error)
    if isinstance(error, ContextLengthExceeded):
        message = error.anthropic_message
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return RenderedError(status, body | {"request_id": wording.request_id}, error.headers)


def _location(param: str | None) -> list[str | int]:
    """Return ["messages", 0, "content"] of `messages[0].content`."""
    parts = re.findall(r"[^.\[\]]+", param or "")
    return [int(part) if part.isdigit() else part for part in parts]


DIALECTS: Mapping[str, Dialect] = {
    "openai": render_openai,
    "fastapi": render_fastapi,
    "flat": render_flat,
    "anthropic": render_anthropic,
}
