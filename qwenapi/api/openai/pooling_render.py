"""Vectors and scores in the words of OpenAI, Jina and vLLM. Pure."""

import base64
import struct
from collections.abc import Sequence
from typing import Any

import orjson

from qwenapi.api.openai.pooling_schemas import RerankRequest


def embeddings_body(vectors: Sequence[bytes], encoding: str, model: str, num_tokens: int) -> bytes:
    """Return the body of vectors, each little-endian float32, as JSON.

    Made vector by vector, so that a thread that does it lets the others run meanwhile.
    """
    items = b",".join(_item(index, vector, encoding) for index, vector in enumerate(vectors))
    tail = orjson.dumps({"model": model, "usage": _usage(num_tokens)})
    return b'{"object":"list","data":[' + items + b"]," + tail[1:]


def rerank_body(
    id_: str, ask: RerankRequest, scores: Sequence[float], model: str, num_tokens: int
) -> dict[str, Any]:
    """Return the best documents, the best first; of equal ones the earlier."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results: list[dict[str, Any]] = []
    for index in order[: ask.top_n or None]:
        document = {"document": {"text": ask.pairs[index][1]}} if ask.return_documents else {}
        results.append({"index": index, "relevance_score": scores[index]} | document)
    return {"id": id_, "model": model, "usage": _usage(num_tokens), "results": results}


def score_body(
    id_: str, created: int, scores: Sequence[float], model: str, num_tokens: int
) -> dict[str, Any]:
    """Return the scores in the order of their pairs."""
    data = [{"index": i, "object": "score", "score": score} for i, score in enumerate(scores)]
    head = {"id": id_, "object": "list", "created": created, "model": model}
    return head | {"data": data, "usage": _usage(num_tokens) | {"completion_tokens": 0}}


def _item(index: int, vector: bytes, encoding: str) -> bytes:
    embedding: Any = list(struct.unpack(f"<{len(vector) // 4}f", vector))
    if encoding == "base64":
        embedding = base64.b64encode(vector).decode("ascii")
    return orjson.dumps({"object": "embedding", "index": index, "embedding": embedding})


def _usage(num_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
