"""JSON Schemas of response bodies, for the OpenAPI document. Pure data.

What renders the bodies is beside each interface, and the tests hold both against each other.
"""

from collections.abc import Mapping
from typing import Any

JsonSchema = dict[str, Any]

TEXT: JsonSchema = {"type": "string"}
WHOLE: JsonSchema = {"type": "integer", "minimum": 0}
NUMBER: JsonSchema = {"type": "number"}


def _object(properties: Mapping[str, JsonSchema], *optional: str) -> JsonSchema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def _list(items: JsonSchema) -> JsonSchema:
    return {"type": "array", "items": items}


def _or_null(schema: JsonSchema) -> JsonSchema:
    return {"anyOf": [schema, {"type": "null"}]}


def _page(items: JsonSchema) -> JsonSchema:
    return _object(
        {
            "object": {"const": "list"},
            "data": _list(items),
            "first_id": _or_null(TEXT),
            "last_id": _or_null(TEXT),
            "has_more": {"type": "boolean"},
        }
    )


def _ref(name: str) -> JsonSchema:
    return {"$ref": f"#/components/schemas/{name}"}


_HEAD = {
    "id": TEXT,
    "object": TEXT,
    "created": WHOLE,
    "model": TEXT,
    "system_fingerprint": TEXT,
}
_TOKEN = _object({"token": TEXT, "logprob": NUMBER, "bytes": _list(WHOLE)})
_REFUSAL: JsonSchema = {"type": "null"}
_CHAT_LOGPROBS = _object(
    {
        "content": _list({"allOf": [_TOKEN, _object({"top_logprobs": _list(_TOKEN)})]}),
        "refusal": _REFUSAL,
    },
    "refusal",
)
_MESSAGE = _object(
    {"role": {"const": "assistant"}, "content": TEXT, "refusal": _REFUSAL}, "refusal"
)
_COMPLETION_LOGPROBS = _object(
    {
        "tokens": _list(TEXT),
        "token_logprobs": _list(_or_null(NUMBER)),
        "top_logprobs": _list(_or_null({"type": "object", "additionalProperties": NUMBER})),
        "text_offset": _list(WHOLE),
    }
)
_BLOCK: JsonSchema = {
    "anyOf": [
        _object({"type": {"const": "text"}, "text": TEXT}),
        _object({"type": {"const": "thinking"}, "thinking": TEXT, "signature": TEXT}),
        _object(
            {"type": {"const": "tool_use"}, "id": TEXT, "name": TEXT, "input": {"type": "object"}}
        ),
    ]
}
_FINISH = {"enum": ["stop", "length"]}
_FIGURES: JsonSchema = {"type": "object", "additionalProperties": {"type": ["number", "string"]}}
_FILE = _object(
    {
        "id": TEXT,
        "object": {"const": "file"},
        "bytes": WHOLE,
        "created_at": WHOLE,
        "expires_at": WHOLE,
        "filename": TEXT,
        "purpose": {"enum": ["batch", "batch_output"]},
        "status": {"const": "processed"},
    }
)
_TIMES = "in_progress finalizing completed failed expired cancelling cancelled".split()
_BATCH = _object(
    {
        "id": TEXT,
        "object": {"const": "batch"},
        "endpoint": TEXT,
        "errors": _or_null({"type": "object"}),
        "input_file_id": TEXT,
        "completion_window": {"const": "24h"},
        "status": {"enum": ["validating", *_TIMES]},
        "output_file_id": _or_null(TEXT),
        "error_file_id": _or_null(TEXT),
        "created_at": WHOLE,
        "expires_at": WHOLE,
        **{f"{status}_at": _or_null(WHOLE) for status in _TIMES},
        "request_counts": _object({"total": WHOLE, "completed": WHOLE, "failed": WHOLE}),
        "metadata": _or_null({"type": "object", "additionalProperties": TEXT}),
    }
)

BODIES: dict[str, JsonSchema] = {
    "Usage": _object(
        {
            "prompt_tokens": WHOLE,
            "completion_tokens": WHOLE,
            "total_tokens": WHOLE,
            "prompt_tokens_details": _object({"cached_tokens": WHOLE}),
        },
        "prompt_tokens_details",
    ),
    "ChatCompletion": _object(
        {
            **_HEAD,
            "choices": _list(
                _object(
                    {
                        "index": WHOLE,
                        "message": _MESSAGE,
                        "logprobs": _or_null(_CHAT_LOGPROBS),
                        "finish_reason": _FINISH,
                        "token_ids": _list(WHOLE),
                    },
                    "logprobs",
                    "token_ids",
                )
            ),
            "usage": _ref("Usage"),
            "prompt_token_ids": _list(WHOLE),
        },
        "system_fingerprint",
        "prompt_token_ids",
    ),
    "Completion": _object(
        {
            **_HEAD,
            "choices": _list(
                _object(
                    {
                        "text": TEXT,
                        "index": WHOLE,
                        "logprobs": _or_null(_COMPLETION_LOGPROBS),
                        "finish_reason": _FINISH,
                        "prompt_token_ids": _list(WHOLE),
                        "token_ids": _list(WHOLE),
                    },
                    "logprobs",
                    "prompt_token_ids",
                    "token_ids",
                )
            ),
            "usage": _ref("Usage"),
        },
        "system_fingerprint",
    ),
    "Model": _object(
        {
            "id": TEXT,
            "object": {"const": "model"},
            "created": WHOLE,
            "owned_by": TEXT,
            "root": TEXT,
            "parent": {"type": "null"},
            "max_model_len": WHOLE,
            "default_sampling_params": {"type": "object"},
        },
        "default_sampling_params",
    ),
    "ModelList": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "Message": _object(
        {
            "id": TEXT,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": TEXT,
            "content": _list(_BLOCK),
            "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
            "stop_sequence": _or_null(TEXT),
            "usage": _object(
                {
                    "input_tokens": WHOLE,
                    "cache_creation_input_tokens": WHOLE,
                    "cache_read_input_tokens": WHOLE,
                    "output_tokens": WHOLE,
                    "output_tokens_details": _object({"thinking_tokens": WHOLE}),
                },
                "output_tokens_details",
            ),
        }
    ),
    "TokenCount": _object({"input_tokens": WHOLE}),
    "GeneratedTexts": _object({"generated_texts": _list(TEXT), "parameters": {"type": "object"}}),
    "GeneratedCode": _object({"status": {"const": "success"}, "result": TEXT}),
    "Conversation": _object(
        {
            "conversation_id": TEXT,
            "created_at": NUMBER,
            "used_at": NUMBER,
            "messages": _list(_object({"role": TEXT, "content": TEXT})),
        }
    ),
    "File": _FILE,
    "FileList": _page(_FILE),
    "DeletedFile": _object({"id": TEXT, "object": TEXT, "deleted": {"type": "boolean"}}),
    "Batch": _BATCH,
    "BatchList": _page(_BATCH),
    "Health": {"type": "object"},
    "Description": _object({"name": TEXT, "version": TEXT, "status": TEXT, "model": TEXT}),
    "Metrics": _object(
        {
            "timestamp": TEXT,
            "service": TEXT,
            "version": TEXT,
            "status": TEXT,
            "uptime": _FIGURES,
            "requests": _FIGURES,
            "tokens": _FIGURES,
            "slo": {"type": "object"},
            "latency": _FIGURES,
            "latency_histogram": _FIGURES,
            "gpu": _FIGURES,
            "errors": {"type": "object"},
            "alerts": _list({"type": "object"}),
            "alerts_count": WHOLE,
        }
    ),
    "Stats": _object({"requests": _FIGURES, "tokens": _FIGURES, "latency": _FIGURES}),
    "Version": _object({"version": TEXT}),
    "Load": _object({"server_load": WHOLE}),
    "OpenAIError": _object(
        {
            "error": _object(
                {
                    "message": TEXT,
                    "type": TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
    "FastAPIError": _object(
        {
            "detail": {
                "anyOf": [
                    TEXT,
                    _list(
                        _object(
                            {
                                "type": TEXT,
                                "loc": _list({"type": ["string", "integer"]}),
                                "msg": TEXT,
                            }
                        )
                    ),
                ]
            }
        }
    ),
    "FlatError": _object(
        {"error": TEXT, "queue_size": WHOLE, "max_queue_size": WHOLE},
        "queue_size",
        "max_queue_size",
    ),
    "AnthropicError": _object(
        {
            "type": {"const": "error"},
            "error": _object({"type": TEXT, "message": TEXT}),
            "request_id": TEXT,
        }
    ),
}
ERROR_BODIES = {
    "openai": "OpenAIError",
    "fastapi": "FastAPIError",
    "flat": "FlatError",
    "anthropic": "AnthropicError",
}
