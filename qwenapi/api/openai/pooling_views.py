"""Views of embeddings, reranking and scores: prompts that are computed and not gone on with."""

import time
from collections.abc import Sequence

from flask import Blueprint, Response, g

from qwenapi.api.openai.pooling_render import embeddings_body, rerank_body, score_body
from qwenapi.api.openai.pooling_schemas import (
    EmbeddingRequest,
    EmbeddingSchema,
    PoolingRequest,
    RerankRequest,
    RerankSchema,
    ScoreRequest,
    ScoreSchema,
)
from qwenapi.api.openai.token_fields import Prompt
from qwenapi.errors import BadRequest
from qwenapi.generation.prompt import beside_others
from qwenapi.generation.rerank import rerank_pooling, rerank_prompts, scores_of
from qwenapi.generation.sampling import check_token_ids
from qwenapi.http.body import accepts
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import (
    choose_profile,
    current_profile,
    load_body,
    new_stream,
    pooling_request,
)
from qwenapi.request_context.services import served_model
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import ModelCard, Pooling


def register(blueprint: Blueprint) -> None:
    """Serve each address by the names it has at Jina, at Cohere and in vLLM."""
    rules = {
        embeddings: ("/v1/embeddings",),
        rerank: ("/v1/rerank", "/v2/rerank", "/rerank"),
        score: ("/v1/score", "/score"),
    }
    for view, addresses in rules.items():
        for address in addresses:
            blueprint.add_url_rule(address, view_func=view, methods=["POST"])


@accepts(EmbeddingSchema, before=choose_profile, load=load_body)
def embeddings(ask: EmbeddingRequest) -> Response:
    card, tokenizer = served_model("embed")
    if ask.dimensions > card.output_size:
        raise BadRequest(
            f"'dimensions' must be at most {card.output_size}, which the model's vectors have.",
            param="dimensions",
        )
    for prompt in ask.inputs:
        if not isinstance(prompt, str):
            check_token_ids(prompt, card.vocab_size, "input")
    size = sum(map(len, ask.inputs))
    prompts = beside_others(size, lambda: [_encode(tokenizer, ask, p) for p in ask.inputs])
    vectors = _pooled(ask, prompts, card, tokenizer, Pooling(dimensions=ask.dimensions))
    model, num_tokens = current_profile().canonical, sum(map(len, prompts))
    body = beside_others(
        sum(map(len, vectors)),
        lambda: embeddings_body(vectors, ask.encoding_format, model, num_tokens),
    )
    return json_response(body)


@accepts(RerankSchema, before=choose_profile, load=load_body)
def rerank(ask: RerankRequest) -> Response:
    scores, num_tokens = _scores(ask)
    id_, model = f"rerank-{g.request_id}", current_profile().canonical
    return json_response(rerank_body(id_, ask, scores, model, num_tokens))


@accepts(ScoreSchema, before=choose_profile, load=load_body)
def score(ask: ScoreRequest) -> Response:
    scores, num_tokens = _scores(ask)
    id_, model = f"score-{g.request_id}", current_profile().canonical
    return json_response(score_body(id_, int(time.time()), scores, model, num_tokens))


def _scores(ask: ScoreRequest) -> tuple[list[float], int]:
    """Return the scores of all pairs, and how many tokens their prompts have."""
    card, tokenizer = served_model("rerank")
    size = sum(len(query) + len(document) for query, document in ask.pairs)
    prompts = beside_others(size, lambda: rerank_prompts(tokenizer, ask.pairs, ask.instruction))
    pooling = rerank_pooling(tokenizer, card)
    return scores_of(_pooled(ask, prompts, card, tokenizer, pooling)), sum(map(len, prompts))


def _pooled(
    ask: PoolingRequest,
    prompts: Sequence[list[int]],
    card: ModelCard,
    tokenizer: Tokenizer,
    pooling: Pooling,
) -> list[bytes]:
    """Return what the engines give of all prompts; raise an ApiError, or Cancelled."""
    wanted = pooling_request(
        prompts, card, pooling, priority=ask.priority, cache_salt=ask.cache_salt
    )
    with new_stream(tokenizer) as stream:
        stream.ask(wanted)
        return stream.pooled()


def _encode(tokenizer: Tokenizer, ask: EmbeddingRequest, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, ask.add_special_tokens)
    return list(prompt)
