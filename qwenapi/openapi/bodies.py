"""JSON Schemas of response bodies, for the OpenAPI document. Pure data.

What renders the bodies is beside each interface, and the tests hold both against each other.
"""

from qwenapi.openapi.error_bodies import ERRORS
from qwenapi.openapi.json_schema import (
    NUMBER,
    TEXT,
    WHOLE,
    JsonSchema,
    list_of,
    object_of,
    or_null,
    page_of,
    ref,
)

_HEAD = {
    "id": TEXT,
    "object": TEXT,
    "created": WHOLE,
    "model": TEXT,
    "system_fingerprint": TEXT,
}
_TOKEN = object_of({"token": TEXT, "logprob": NUMBER, "bytes": list_of(WHOLE)})
_REFUSAL: JsonSchema = {"type": "null"}
_CHAT_LOGPROBS = object_of(
    {
        "content": list_of({"allOf": [_TOKEN, object_of({"top_logprobs": list_of(_TOKEN)})]}),
        "refusal": _REFUSAL,
    },
    "refusal",
)
_MESSAGE = object_of(
    {"role": {"const": "assistant"}, "content": TEXT, "refusal": _REFUSAL}, "refusal"
)
_COMPLETION_LOGPROBS = object_of(
    {
        "tokens": list_of(TEXT),
        "token_logprobs": list_of(or_null(NUMBER)),
        "top_logprobs": list_of(or_null({"type": "object", "additionalProperties": NUMBER})),
        "text_offset": list_of(WHOLE),
    }
)
_BLOCK: JsonSchema = {
    "anyOf": [
        object_of({"type": {"const": "text"}, "text": TEXT}),
        object_of({"type": {"const": "thinking"}, "thinking": TEXT, "signature": TEXT}),
        object_of(
            {"type": {"const": "tool_use"}, "id": TEXT, "name": TEXT, "input": {"type": "object"}}
        ),
    ]
}
_READ = object_of({"prompt_tokens": WHOLE, "total_tokens": WHOLE})
_ITEM = object_of({"id": TEXT, "type": TEXT, "status": TEXT})
_FINISH = {"enum": ["stop", "length"]}
_FIGURES: JsonSchema = {"type": "object", "additionalProperties": {"type": ["number", "string"]}}
_FILE = object_of(
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
_BATCH = object_of(
    {
        "id": TEXT,
        "object": {"const": "batch"},
        "endpoint": TEXT,
        "errors": or_null({"type": "object"}),
        "input_file_id": TEXT,
        "completion_window": {"const": "24h"},
        "status": {"enum": ["validating", *_TIMES]},
        "output_file_id": or_null(TEXT),
        "error_file_id": or_null(TEXT),
        "created_at": WHOLE,
        "expires_at": WHOLE,
        **{f"{status}_at": or_null(WHOLE) for status in _TIMES},
        "request_counts": object_of({"total": WHOLE, "completed": WHOLE, "failed": WHOLE}),
        "metadata": or_null({"type": "object", "additionalProperties": TEXT}),
    }
)

BODIES: dict[str, JsonSchema] = {
    "Usage": object_of(
        {
            "prompt_tokens": WHOLE,
            "completion_tokens": WHOLE,
            "total_tokens": WHOLE,
            "prompt_tokens_details": object_of({"cached_tokens": WHOLE}),
        },
        "prompt_tokens_details",
    ),
    "ChatCompletion": object_of(
        {
            **_HEAD,
            "choices": list_of(
                object_of(
                    {
                        "index": WHOLE,
                        "message": _MESSAGE,
                        "logprobs": or_null(_CHAT_LOGPROBS),
                        "finish_reason": _FINISH,
                        "token_ids": list_of(WHOLE),
                    },
                    "logprobs",
                    "token_ids",
                )
            ),
            "usage": ref("Usage"),
            "prompt_token_ids": list_of(WHOLE),
        },
        "system_fingerprint",
        "prompt_token_ids",
    ),
    "Completion": object_of(
        {
            **_HEAD,
            "choices": list_of(
                object_of(
                    {
                        "text": TEXT,
                        "index": WHOLE,
                        "logprobs": or_null(_COMPLETION_LOGPROBS),
                        "finish_reason": _FINISH,
                        "prompt_token_ids": list_of(WHOLE),
                        "token_ids": list_of(WHOLE),
                    },
                    "logprobs",
                    "prompt_token_ids",
                    "token_ids",
                )
            ),
            "usage": ref("Usage"),
        },
        "system_fingerprint",
    ),
    "Model": object_of(
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
    "ModelList": object_of({"object": {"const": "list"}, "data": list_of(ref("Model"))}),
    "Embeddings": object_of(
        {
            "object": {"const": "list"},
            "data": list_of(
                object_of(
                    {
                        "object": {"const": "embedding"},
                        "index": WHOLE,
                        "embedding": {"anyOf": [list_of(NUMBER), TEXT]},
                    }
                )
            ),
            "model": TEXT,
            "usage": _READ,
        }
    ),
    "Ranking": object_of(
        {
            "id": TEXT,
            "model": TEXT,
            "usage": _READ,
            "results": list_of(
                object_of(
                    {
                        "index": WHOLE,
                        "relevance_score": NUMBER,
                        "document": object_of({"text": TEXT}),
                    },
                    "document",
                )
            ),
        }
    ),
    "Scores": object_of(
        {
            "id": TEXT,
            "object": {"const": "list"},
            "created": WHOLE,
            "model": TEXT,
            "data": list_of(
                object_of({"index": WHOLE, "object": {"const": "score"}, "score": NUMBER})
            ),
            "usage": _READ,
        }
    ),
    "Tokens": object_of(
        {
            "count": WHOLE,
            "max_model_len": WHOLE,
            "tokens": list_of(WHOLE),
            "token_strs": or_null(list_of(TEXT)),
        }
    ),
    "TokensText": object_of({"prompt": TEXT}),
    "TokenizerInfo": object_of({"tokenizer_class": TEXT, "chat_template": TEXT}, "chat_template"),
    "Message": object_of(
        {
            "id": TEXT,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": TEXT,
            "content": list_of(_BLOCK),
            "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
            "stop_sequence": or_null(TEXT),
            "usage": object_of(
                {
                    "input_tokens": WHOLE,
                    "cache_creation_input_tokens": WHOLE,
                    "cache_read_input_tokens": WHOLE,
                    "output_tokens": WHOLE,
                    "output_tokens_details": object_of({"thinking_tokens": WHOLE}),
                },
                "output_tokens_details",
            ),
        }
    ),
    "Response": object_of(
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
            "completed_at": or_null(WHOLE),
            "conversation": or_null(object_of({"id": TEXT})),
            "error": or_null(object_of({"code": TEXT, "message": TEXT})),
            "incomplete_details": or_null(object_of({"reason": {"const": "max_output_tokens"}})),
            "instructions": or_null(TEXT),
            "max_output_tokens": or_null(WHOLE),
            "max_tool_calls": {"type": "null"},
            "metadata": {"type": "object", "additionalProperties": TEXT},
            "model": TEXT,
            "output": list_of(_ITEM),
            "parallel_tool_calls": {"type": "boolean"},
            "previous_response_id": or_null(TEXT),
            "prompt": {"type": "null"},
            "prompt_cache_key": or_null(TEXT),
            "prompt_cache_retention": or_null(TEXT),
            "reasoning": object_of({"effort": or_null(TEXT), "summary": {"type": "null"}}),
            "safety_identifier": or_null(TEXT),
            "service_tier": {"const": "default"},
            "store": {"type": "boolean"},
            "temperature": NUMBER,
            "text": object_of({"format": {"type": "object"}, "verbosity": TEXT}),
            "tool_choice": {"type": ["string", "object"]},
            "tools": list_of({"type": "object"}),
            "top_logprobs": WHOLE,
            "top_p": NUMBER,
            "truncation": {"enum": ["auto", "disabled"]},
            "usage": or_null(
                object_of(
                    {
                        "input_tokens": WHOLE,
                        "input_tokens_details": object_of(
                            {"cached_tokens": WHOLE, "cache_write_tokens": WHOLE}
                        ),
                        "output_tokens": WHOLE,
                        "output_tokens_details": object_of({"reasoning_tokens": WHOLE}),
                        "total_tokens": WHOLE,
                    }
                )
            ),
            "user": or_null(TEXT),
        }
    ),
    "Item": _ITEM,
    "ItemConversation": object_of(
        {
            "id": TEXT,
            "object": {"const": "conversation"},
            "created_at": WHOLE,
            "metadata": {"type": "object", "additionalProperties": TEXT},
        }
    ),
    "InputTokenCount": object_of(
        {"object": {"const": "response.input_tokens"}, "input_tokens": WHOLE}
    ),
    "Deleted": object_of({"id": TEXT, "object": TEXT, "deleted": {"const": True}}),
    "ItemList": page_of(_ITEM),
    "TokenCount": object_of({"input_tokens": WHOLE}),
    "GeneratedTexts": object_of(
        {"generated_texts": list_of(TEXT), "parameters": {"type": "object"}}
    ),
    "GeneratedCode": object_of({"status": {"const": "success"}, "result": TEXT}),
    "Conversation": object_of(
        {
            "conversation_id": TEXT,
            "created_at": NUMBER,
            "used_at": NUMBER,
            "messages": list_of(object_of({"role": TEXT, "content": TEXT})),
        }
    ),
    "File": _FILE,
    "FileList": page_of(_FILE),
    "Batch": _BATCH,
    "BatchList": page_of(_BATCH),
    "Health": {"type": "object"},
    "Description": object_of({"name": TEXT, "version": TEXT, "status": TEXT, "model": TEXT}),
    "Metrics": object_of(
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
            "alerts": list_of({"type": "object"}),
            "alerts_count": WHOLE,
        }
    ),
    "Stats": object_of({"requests": _FIGURES, "tokens": _FIGURES, "latency": _FIGURES}),
    "Version": object_of({"version": TEXT}),
    "Load": object_of({"server_load": WHOLE}),
    **ERRORS,
}
