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
_READ = _object({"prompt_tokens": WHOLE, "total_tokens": WHOLE})
_ITEM = _object({"id": TEXT, "type": TEXT, "status": TEXT})
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
            "task": {"enum": ["generate", "embed", "rerank"]},
            "default_sampling_params": {"type": "object"},
            "dimensions": WHOLE,
        },
        "task",
        "default_sampling_params",
        "dimensions",
    ),
    "ModelList": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            "data": _list(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "index": WHOLE,
                        "embedding": {"anyOf": [_list(NUMBER), TEXT]},
                    }
                )
            ),
            "model": TEXT,
            "usage": _READ,
        }
    ),
    "Ranking": _object(
        {
            "id": TEXT,
            "model": TEXT,
            "usage": _READ,
            "results": _list(
                _object(
                    {
                        "index": WHOLE,
                        "relevance_score": NUMBER,
                        "document": _object({"text": TEXT}),
                    },
                    "document",
                )
            ),
        }
    ),
    "Scores": _object(
        {
            "id": TEXT,
            "object": {"const": "list"},
            "created": WHOLE,
            "model": TEXT,
            "data": _list(_object({"index": WHOLE, "object": {"const": "score"}, "score": NUMBER})),
            "usage": _READ,
        }
    ),
    "Tokens": _object(
        {
            "count": WHOLE,
            "max_model_len": WHOLE,
            "tokens": _list(WHOLE),
            "token_strs": _or_null(_list(TEXT)),
        }
    ),
    "TokensText": _object({"prompt": TEXT}),
    "TokenizerInfo": _object({"tokenizer_class": TEXT, "chat_template": TEXT}, "chat_template"),
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
    "Response": _object(
        {
            "id": TEXT,
            "object": {"const": "response"},
            "created_at": WHOLE,
            "status": {
                "enum": [
                    *("queued", "in_progress", "completed", "incomplete", "failed", "cancelled"),
                ]
            },
            "background": {"type": "boolean"},
            "completed_at": _or_null(WHOLE),
            "conversation": _or_null(_object({"id": TEXT})),
            "error": _or_null(_object({"code": TEXT, "message": TEXT})),
            "incomplete_details": _or_null(_object({"reason": {"const": "max_output_tokens"}})),
            "instructions": _or_null(TEXT),
            "max_output_tokens": _or_null(WHOLE),
            "max_tool_calls": {"type": "null"},
            "metadata": {"type": "object", "additionalProperties": TEXT},
            "model": TEXT,
            "output": _list(_ITEM),
            "parallel_tool_calls": {"type": "boolean"},
            "previous_response_id": _or_null(TEXT),
            "prompt": {"type": "null"},
            "prompt_cache_key": _or_null(TEXT),
            "prompt_cache_retention": _or_null(TEXT),
            "reasoning": _object({"effort": _or_null(TEXT), "summary": {"type": "null"}}),
            "safety_identifier": _or_null(TEXT),
            "service_tier": {"const": "default"},
            "store": {"type": "boolean"},
            "temperature": NUMBER,
            "text": _object({"format": {"type": "object"}, "verbosity": TEXT}),
            "tool_choice": {"type": ["string", "object"]},
            "tools": _list({"type": "object"}),
            "top_logprobs": WHOLE,
            "top_p": NUMBER,
            "truncation": {"enum": ["auto", "disabled"]},
            "usage": _or_null(
                _object(
                    {
                        "input_tokens": WHOLE,
                        "input_tokens_details": _object(
                            {"cached_tokens": WHOLE, "cache_write_tokens": WHOLE}
                        ),
                        "output_tokens": WHOLE,
                        "output_tokens_details": _object({"reasoning_tokens": WHOLE}),
                        "total_tokens": WHOLE,
                    }
                )
            ),
            "user": _or_null(TEXT),
        }
    ),
    "Item": _ITEM,
    "ItemConversation": _object(
        {
            "id": TEXT,
            "object": {"const": "conversation"},
            "created_at": WHOLE,
            "metadata": {"type": "object", "additionalProperties": TEXT},
        }
    ),
    "InputTokenCount": _object(
        {"object": {"const": "response.input_tokens"}, "input_tokens": WHOLE}
    ),
    "Deleted": _object({"id": TEXT, "object": TEXT, "deleted": {"const": True}}),
    "ItemList": _object(
        {
            "object": {"const": "list"},
            "data": _list(_ITEM),
            "first_id": _or_null(TEXT),
            "last_id": _or_null(TEXT),
            "has_more": {"type": "boolean"},
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
