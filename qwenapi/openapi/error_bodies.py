"""JSON Schemas of error bodies, one for each error dialect of qwenapi/errors.py. Pure data."""

from qwenapi.openapi.json_schema import TEXT, WHOLE, JsonSchema, list_of, object_of

ERRORS: dict[str, JsonSchema] = {
    "OpenAIError": object_of(
        {
            "error": object_of(
                {
                    "message": TEXT,
                    "type": TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
    "FastAPIError": object_of(
        {
            "detail": {
                "anyOf": [
                    TEXT,
                    list_of(
                        object_of(
                            {
                                "type": TEXT,
                                "loc": list_of({"type": ["string", "integer"]}),
                                "msg": TEXT,
                            }
                        )
                    ),
                ]
            }
        }
    ),
    "FlatError": object_of(
        {"error": TEXT, "queue_size": WHOLE, "max_queue_size": WHOLE},
        "queue_size",
        "max_queue_size",
    ),
    "AnthropicError": object_of(
        {
            "type": {"const": "error"},
            "error": object_of({"type": TEXT, "message": TEXT}),
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
