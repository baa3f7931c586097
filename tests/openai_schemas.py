"""OpenAI's published schemas of answers and stream events: cut from their document, and checked.

openai_schemas.json has what `python -m tests.openai_schemas FILE` cuts from openapi.json of the
repository openai/openai-openapi, here of its commit f85dbe2 (2026-08-21): the facts without their
prose. Of unions it keeps what this server can send, so that an item of a hosted tool is an error.
"""

import argparse
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FILE = Path(__file__).with_suffix(".json")
REF = "#/components/schemas/"
NULL = {"type": "null"}

ROOTS = """
    Batch ConversationItem ConversationItemList ConversationResource
    CreateChatCompletionResponse CreateChatCompletionStreamResponse CreateCompletionResponse
    CreateEmbeddingResponse DeletedConversationResource DeleteFileResponse ErrorResponse
    ListBatchesResponse ListFilesResponse ListModelsResponse Model OpenAIFile
    Response ResponseItemList ResponseStreamEvent TokenCountsResource
""".split()
# Of each union of many kinds, those that are not of hosted tools, sounds or images.
KEPT = {
    "ConversationItem": """
        Message FunctionToolCallResource FunctionToolCallOutputResource ReasoningItem
    """,
    "InputItem": "EasyInputMessage",
    "ItemResource": """
        InputMessageResource OutputMessage FunctionToolCallResource FunctionToolCallOutputResource
        ReasoningItem
    """,
    "OutputItem": "OutputMessage FunctionToolCall ReasoningItem",
    "ResponseStreamEvent": """
        ResponseCompletedEvent ResponseContentPartAddedEvent ResponseContentPartDoneEvent
        ResponseCreatedEvent ResponseErrorEvent ResponseFailedEvent
        ResponseFunctionCallArgumentsDeltaEvent ResponseFunctionCallArgumentsDoneEvent
        ResponseInProgressEvent ResponseIncompleteEvent ResponseOutputItemAddedEvent
        ResponseOutputItemDoneEvent ResponseReasoningTextDeltaEvent ResponseReasoningTextDoneEvent
        ResponseTextDeltaEvent ResponseTextDoneEvent
    """,
    "Tool": "FunctionTool",
    "ToolChoiceParam": "ToolChoiceOptions ToolChoiceAllowed ToolChoiceFunction",
}
# What OpenAI sends as null though its schema has no null there, and where that is said: examples
# and words are those of the document itself.
NULLABLE = {
    # The examples of a batch: what has not happened is null.
    "Batch": """
        errors output_file_id error_file_id in_progress_at finalizing_at completed_at failed_at
        expired_at cancelling_at cancelled_at
    """,
    # The example of a response.
    "ModelResponseProperties": "user",
    # The examples of `response.created` and `response.in_progress`.
    "Response": "usage",
    # The schema is of whole completions; by the streamed example a choice that goes on has no
    # reason to have finished, and by the words of `include_usage` all events but the last have no
    # usage. With `echo` the first token follows nothing; evaluation harnesses read its null.
    "CreateCompletionResponse": """
        choices[].finish_reason usage choices[].logprobs.token_logprobs[]
        choices[].logprobs.top_logprobs[]
    """,
    # An empty list has no first: its keys are required, and no string is an id of nothing.
    "ConversationItemList": "first_id last_id",
    "ListFilesResponse": "first_id last_id",
    "ResponseItemList": "first_id last_id",
}
PROSE = {"description", "title", "summary", "example", "examples", "externalDocs", "default"}


def errors(name: str, body: Any) -> list[str]:
    """Return what of a body is not as the schema of this name says, and where."""
    return [
        f"{error.json_path}: {error.message[:300]}" for error in _validator(name).iter_errors(body)
    ]


def event_schemas() -> dict[str, str]:
    """Return the names of the schemas of a response's stream events, by their type."""
    schemas = _published()
    kinds = (one["$ref"].removeprefix(REF) for one in schemas["ResponseStreamEvent"]["anyOf"])
    return {schemas[kind]["properties"]["type"]["enum"][0]: kind for kind in kinds}


def cut(document: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas that answers are checked with, by name."""
    schemas, found, todo = document["components"]["schemas"], {}, list(ROOTS)
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = _chosen(name, _facts(schemas[name]))
            todo += _refs(found[name])
    return dict(sorted(found.items()))


@cache
def _published() -> dict[str, Any]:
    schemas: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    for name, paths in NULLABLE.items():
        for path in paths.split():
            _allow_null(schemas[name], path.replace("[]", ".[]").split("."))
    return schemas


def _allow_null(schema: dict[str, Any], path: list[str]) -> None:
    """Let what stands at a path, `[]` being a list's items, be null as well."""
    for union in ("allOf", "anyOf"):  # of one object, and perhaps null
        for one in schema.get(union, ()):
            if path[0] in one.get("properties", ()):
                schema = one
    step, *rest = path
    place, key = (schema, "items") if step == "[]" else (schema["properties"], step)
    if rest:
        _allow_null(place[key], rest)
    else:
        assert NULL not in place[key].get("anyOf", ()), f"{path} may be null already"
        place[key] = {"anyOf": [place[key], NULL]}


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": REF + name, "components": {"schemas": _published()}})


def _chosen(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name not in KEPT:
        return schema
    kept = {REF + kind for kind in KEPT[name].split()}
    (union,) = schema.keys() & {"oneOf", "anyOf"}
    alternatives = [one for one in schema[union] if one.get("$ref") in kept]
    assert len(alternatives) == len(kept), f"{name} has not all of {kept}"
    return schema | {union: alternatives}


def _facts(value: Any, *, is_named: bool = False) -> Any:
    """Return a schema without what only people read; the keys of properties are all facts.

    `nullable` is of OpenAPI 3.0; in 3.1, which the document is of, it would say nothing.
    """
    if isinstance(value, list):
        return [_facts(one) for one in value]
    if not isinstance(value, dict):
        return value
    facts = {
        key: _facts(one, is_named=not is_named and key == "properties")
        for key, one in value.items()
        if is_named or not (key in PROSE or key.startswith("x-"))
    }
    is_nullable = not is_named and facts.pop("nullable", False)
    return {"anyOf": [facts, NULL]} if is_nullable else facts


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].removeprefix(REF)
        value = list(value.values())
    for one in value if isinstance(value, list) else ():
        yield from _refs(one)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", type=Path)
    schemas = cut(json.loads(parser.parse_args().document.read_text(encoding="utf-8")))
    lines = ",\n".join(f"{json.dumps(name)}:{json.dumps(schemas[name])}" for name in schemas)
    FILE.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
