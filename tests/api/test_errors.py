import pytest

from qwenapi import errors
from qwenapi.errors import (
    ApiError,
    BadRequest,
    ModelNotFound,
    QueueFull,
    Wording,
    render_anthropic,
    render_openai,
)


def tree(root: type[ApiError]) -> list[type[ApiError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in tree(child))]


@pytest.mark.parametrize(
    ("name", "status", "kind", "code"),
    [
        ("ApiError", 500, "server_error", None),
        ("BadRequest", 400, "invalid_request_error", None),
        ("ContextLengthExceeded", 400, "invalid_request_error", "context_length_exceeded"),
        ("NotFound", 404, "invalid_request_error", None),
        ("ModelNotFound", 404, "invalid_request_error", "model_not_found"),
        ("MethodNotAllowed", 405, "invalid_request_error", None),
        ("PayloadTooLarge", 413, "invalid_request_error", None),
        ("UnsupportedMediaType", 415, "invalid_request_error", None),
        ("EngineUnavailable", 503, "server_error", "engine_unavailable"),
        ("QueueFull", 503, "server_error", "queue_full"),
        ("ModelChanged", 503, "server_error", "model_changed"),
        ("RequestQuarantined", 422, "invalid_request_error", "request_quarantined"),
        ("InternalError", 500, "server_error", "internal_error"),
        ("EngineFailed", 500, "server_error", "engine_failed"),
        ("EngineCrash", 500, "server_error", "engine_crash"),
    ],
)
def test_each_error_knows_its_status_and_code(
    name: str, status: int, kind: str, code: str | None
) -> None:
    error = getattr(errors, name)
    assert (error.status, error.type, error.code) == (status, kind, code)


def test_every_error_has_a_public_sentence() -> None:
    assert all(error.sentence.endswith(".") for error in tree(ApiError))


R1 = Wording(request_id="r1")


def test_a_callers_error_is_rendered_as_openai_renders_it() -> None:
    error = BadRequest("'n' must be an integer from 1 to 8.", param="n")
    assert render_openai(error, R1) == (
        400,
        {
            "error": {
                "message": "'n' must be an integer from 1 to 8.",
                "type": "invalid_request_error",
                "param": "n",
                "code": None,
            }
        },
        {},
    )


def test_a_failure_of_ours_names_the_request() -> None:
    _, body, _ = render_openai(errors.EngineFailed(), R1)
    assert body["error"]["message"].endswith("(request r1)")


@pytest.mark.parametrize(
    ("seconds", "header", "millis"), [(0.2, "1", "200"), (1, "1", "1000"), (2.5, "3", "2500")]
)
def test_waiting_is_told_in_seconds_and_milliseconds(
    seconds: float, header: str, millis: str
) -> None:
    error = QueueFull(10, 10, retry_after=seconds)
    assert render_openai(error, R1).headers == {
        "Retry-After": header,
        "retry-after-ms": millis,
    }
    assert (error.queue_size, error.max_queue_size) == (10, 10)


def test_an_unknown_model_is_told_which_ones_are_served() -> None:
    error = ModelNotFound("gpt" * 1000, ["Qwen3-8B", "MyCoder"])
    assert "Served: 'Qwen3-8B', 'MyCoder'." in error.message
    assert error.param == "model" and len(error.message) < 200


def test_the_overflow_of_a_context_is_told_with_both_numbers_and_in_openais_words() -> None:
    error = errors.ContextLengthExceeded(4096, 5000)
    ours = render_openai(error, R1).body["error"]
    assert ours["message"].startswith("The model's context is 4096 tokens, the prompt has 5000.")
    theirs = render_openai(error, Wording(request_id="r1", as_openai=True)).body["error"]
    assert theirs["message"].startswith(
        "This model's maximum context length is 4096 tokens. However, your prompt has 5000 tokens."
    )
    assert ours["code"] == theirs["code"] == "context_length_exceeded"
    untold = errors.ContextLengthExceeded()
    assert untold.openai_message == untold.message == untold.sentence


def test_extra_headers_are_kept() -> None:
    error = errors.MethodNotAllowed(headers={"Allow": "POST"})
    assert render_openai(error, R1).headers == {"Allow": "POST"}


CODER = Wording(request_id="r1", failure_prefix="服务器内部错误: ")
NEWS = Wording(
    request_id="r1", busy_message="服务繁忙，请稍后重试", loading_message="模型加载中，请稍后重试"
)
GUIDE = Wording(request_id="r1", malformed_status=422)


def test_fastapis_dialect_lists_a_callers_faults_and_says_others_in_one_sentence() -> None:
    missing = BadRequest("'prompt' is required.", param="prompt", kind="missing")
    status, body, _ = errors.render_fastapi(missing, CODER)
    assert status == 422
    assert body == {
        "detail": [{"type": "missing", "loc": ["body", "prompt"], "msg": "'prompt' is required."}]
    }
    status, body, _ = errors.render_fastapi(errors.EngineFailed(), CODER)
    assert status == 500 and body["detail"].startswith("服务器内部错误: The engine failed")
    deep = BadRequest("x", param="messages[0].content", kind="type")
    assert errors.render_fastapi(deep, CODER).body["detail"][0]["loc"] == [
        "body",
        "messages",
        0,
        "content",
    ]


def test_the_flat_dialect_says_one_string_and_the_queues_figures() -> None:
    status, body, headers = errors.render_flat(QueueFull(10, 10, retry_after=2), NEWS)
    assert (status, body) == (
        503,
        {"error": "服务繁忙，请稍后重试", "queue_size": 10, "max_queue_size": 10},
    )
    assert headers["Retry-After"] == "2"
    loading = errors.render_flat(errors.EngineUnavailable(), NEWS)
    assert (loading.status, loading.body) == (503, {"error": "模型加载中，请稍后重试"})
    for other in (errors.QueueTimeout(), errors.ServerShutdown(), errors.ModelChanged()):
        said = errors.render_flat(other, NEWS)
        assert (said.status, said.body) == (503, {"error": other.message}), "nothing is loading"


@pytest.mark.parametrize(
    ("kind", "status"), [("json", 422), ("missing", 422), ("type", 422), ("value", 400)]
)
def test_a_profile_may_tell_a_malformed_body_from_a_wrong_value(kind: str, status: int) -> None:
    assert render_openai(BadRequest("x", kind=kind), GUIDE).status == status
    assert render_openai(BadRequest("x", kind=kind), R1).status == 400
    assert render_openai(errors.ContextLengthExceeded(), GUIDE).status == 400


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadRequest("No."), 400, "invalid_request_error"),
        (errors.Unauthorized(), 401, "authentication_error"),
        (errors.Forbidden("inference"), 403, "permission_error"),
        (ModelNotFound("x", ["y"]), 404, "not_found_error"),
        (errors.MethodNotAllowed(), 405, "invalid_request_error"),
        (errors.PayloadTooLarge(), 413, "request_too_large"),
        (errors.RateLimited(), 429, "rate_limit_error"),
        (errors.EngineFailed(), 500, "api_error"),
        (errors.EngineUnavailable(), 503, "api_error"),
        (errors.QueueTimeout(), 529, "overloaded_error"),
        (QueueFull(10, 10, 2), 529, "overloaded_error"),
    ],
)
def test_anthropics_form_has_its_statuses_and_types(error, status, kind) -> None:
    rendered = render_anthropic(error, R1)
    assert rendered.status == status and rendered.headers == error.headers
    message = rendered.body["error"].pop("message")
    assert message.startswith(error.message.rstrip("."))
    assert rendered.body == {"type": "error", "error": {"type": kind}, "request_id": "r1"}


def test_a_prompt_that_is_too_long_is_told_in_the_words_anthropics_clients_search_for() -> None:
    body = render_anthropic(errors.ContextLengthExceeded(100, 120), R1).body
    assert body["error"]["message"].startswith("prompt is too long: 120 tokens > 99 maximum.")
    unknown = render_anthropic(errors.ContextLengthExceeded(), R1).body
    assert unknown["error"]["message"] == errors.ContextLengthExceeded.sentence
