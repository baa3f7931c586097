"""Request bodies of embeddings, reranking and scores: their schemas, and the values they make."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from marshmallow import ValidationError, validates_schema

from qwenapi.api.openai.foreign_fields import WITHOUT_EFFECT
from qwenapi.api.openai.token_fields import MAX_PROMPTS, Prompt, Prompts, Salt
from qwenapi.http.fields import (
    Composite,
    Neutral,
    Path,
    StrictBoolean,
    StrictChoice,
    StrictInteger,
    StrictString,
    refuse,
)
from qwenapi.http.schemas import RequestSchema
from qwenapi.shared_fields.sampling_fields import INT32

_TEXT = {"type": "string", "minLength": 1}
_CUT = Neutral(feature="cutting what is too long")
# Of vLLM, Jina and Cohere; each would change the numbers.
_UNSUPPORTED = {
    "truncate_prompt_tokens": _CUT,
    "truncation_side": _CUT,
    "truncate": Neutral("NONE", feature="cutting what is too long"),
    "use_activation": Neutral(True, feature="numbers that are no scores or vectors of length 1"),
    "normalize": Neutral(True, feature="vectors of another length than 1"),
    "normalized": Neutral(True, feature="vectors of another length than 1"),
    "late_chunking": Neutral(False, feature="late chunking"),
    "embedding_types": Neutral(["float"], feature="embedding_types (use encoding_format)"),
    "mm_processor_kwargs": Neutral({}, feature="images"),
    "max_tokens_per_doc": _CUT,
    "max_chunks_per_doc": _CUT,
    "rank_fields": Neutral(["text"], [], feature="fields of documents other than text"),
}


class EmbeddingInputs(Prompts):
    """What is to be embedded: as raw prompts are given, but no empty text."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[Prompt, ...]:
        prompts = super()._deserialize(value, attr, data)
        for i, prompt in enumerate(prompts):
            if not prompt:
                refuse((i,) if isinstance(value, list) else (), "is empty")
        return prompts


class Texts(Composite):
    """One text or several, none of them empty; with `as_documents` each may be `{"text": …}`."""

    def __init__(self, *, as_documents: bool = False, **kwargs: Any) -> None:
        self._as_documents = as_documents
        document = {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]}
        item = {"anyOf": [_TEXT, document]} if as_documents else _TEXT
        several = {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_PROMPTS}
        self.json_schema = {"anyOf": [item, several]}
        super().__init__(**kwargs)

    def unknown(self, value: Any) -> Iterator[Path]:
        for i, item in enumerate(value if isinstance(value, list) else ()):
            for key in item if isinstance(item, dict) else ():
                if key != "text":
                    yield i, key

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[str, ...]:
        items = value if isinstance(value, list) else [value]
        if not 1 <= len(items) <= MAX_PROMPTS:
            raise ValidationError(f"must be a text or a list of 1 to {MAX_PROMPTS}")
        return tuple(
            self._text(item, (i,) if items is value else ()) for i, item in enumerate(items)
        )

    def _text(self, item: Any, path: Path) -> str:
        text = item.get("text") if self._as_documents and isinstance(item, dict) else item
        if not isinstance(text, str) or not text:
            either = " or an object with one as 'text'" if self._as_documents else ""
            refuse(path, f"must be a string that is not empty{either}")
        return text


@dataclass(frozen=True, kw_only=True)
class PoolingRequest:
    """What all of them have; `priority` as the caller asked."""

    priority: int | None = None
    cache_salt: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class EmbeddingRequest(PoolingRequest):
    """Texts or tokens whose vectors are asked for; `dimensions` 0: as many as the model has."""

    inputs: tuple[Prompt, ...] = field(repr=False)
    dimensions: int = 0
    encoding_format: str = "float"
    add_special_tokens: bool = True


@dataclass(frozen=True, kw_only=True)
class ScoreRequest(PoolingRequest):
    """Queries and documents, in pairs, whose scores are asked for."""

    pairs: tuple[tuple[str, str], ...] = field(repr=False)
    instruction: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class RerankRequest(ScoreRequest):
    """Documents to sort by what they have to say to one query; `top_n` 0: all of them."""

    top_n: int = 0
    return_documents: bool = True


class PoolingSchema(RequestSchema):
    """Fields of all of them; `request_id` is none, as there is no answer to call so."""

    without_effect = WITHOUT_EFFECT
    unsupported = _UNSUPPORTED

    model = StrictString(256)
    priority = StrictInteger(-INT32 - 1, INT32)
    cache_salt = Salt()


class EmbeddingSchema(PoolingSchema):
    """`POST /v1/embeddings`."""

    value_class = EmbeddingRequest

    inputs = EmbeddingInputs(
        required=True, data_key="input", error_messages={"required": "is required"}
    )
    dimensions = StrictInteger(1, INT32)
    encoding_format = StrictChoice("float", "base64")
    add_special_tokens = StrictBoolean()


class RerankSchema(PoolingSchema):
    """`POST /v1/rerank`: Jina's body, and Cohere's."""

    value_class = RerankRequest

    query = StrictString(None, required=True)
    documents = Texts(as_documents=True, required=True, error_messages={"required": "is required"})
    top_n = StrictInteger(0, INT32)
    return_documents = StrictBoolean()
    instruction = StrictString(None)

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        return data | {"pairs": tuple((data["query"], one) for one in data["documents"])}

    @validates_schema
    def check_query(self, data: dict[str, Any], **_: Any) -> None:
        if not data["query"]:
            raise ValidationError("is empty", "query")


class ScoreSchema(PoolingSchema):
    """`POST /v1/score`: vLLM's; one text is compared with each of several, or each with its own."""

    value_class = ScoreRequest

    text_1 = Texts(required=True, error_messages={"required": "is required"})
    text_2 = Texts(required=True, error_messages={"required": "is required"})
    instruction = StrictString(None)

    @validates_schema
    def check_lengths(self, data: dict[str, Any], **_: Any) -> None:
        first, second = len(data["text_1"]), len(data["text_2"])
        if first not in (1, second):
            raise ValidationError(f"must be one text, or {second} as 'text_2' has", "text_1")

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        first, second = data["text_1"], data["text_2"]
        pairs = zip(first * len(second) if len(first) == 1 else first, second, strict=True)
        return data | {"pairs": tuple(pairs)}
