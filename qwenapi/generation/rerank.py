"""Rerank: prompts that ask whether a document answers a query, and scores of what a model says.

The prompt is the one that Qwen3-Reranker was trained with, as its model card prints it. The score
is the probability of yes against no behind it; a checkpoint converted to a classifier has the
difference of their logits as its one output.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from functools import cache

from qwenapi.errors import BadRequest
from qwenapi.text.tokenizer import Tokenizer
from workers.errors import ModelError
from workers.wire.protocol import ModelCard, Pooling

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
# Of all prompts of a request: as many as the largest body of the default settings has bytes.
MAX_TOKENS = 4 * 1024 * 1024
_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and"
    ' the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def rerank_prompts(
    tokenizer: Tokenizer, pairs: Iterable[tuple[str, str]], instruction: str | None
) -> list[list[int]]:
    """Return the prompt of each query and document; what looks like a control token is text.

    Raises BadRequest where a long query beside many documents makes more of a small body than any
    other body could ask for.
    """
    before = tokenizer.encode(_BEFORE, add_special_tokens=False)
    after = tokenizer.encode(_AFTER, add_special_tokens=False)

    @cache
    def asked(query: str) -> list[int]:
        # Encoded apart: no token of Qwen's goes on behind the end of a line.
        told = f"<Instruct>: {instruction or INSTRUCTION}\n<Query>: {query}\n"
        return before + tokenizer.encode_plain(told)

    prompts: list[list[int]] = []
    num_tokens = 0
    for query, document in pairs:
        prompts.append(asked(query) + tokenizer.encode_plain(f"<Document>: {document}") + after)
        num_tokens += len(prompts[-1])
        if num_tokens > MAX_TOKENS:
            raise BadRequest(f"The prompts of one request have more than {MAX_TOKENS} tokens.")
    return prompts


def rerank_pooling(tokenizer: Tokenizer, card: ModelCard) -> Pooling:
    """Return what to ask behind a prompt: a classifier's output, else the logits of no and yes."""
    if card.output_size == 1:
        return Pooling((0,))
    return Pooling(answer_ids(tokenizer))


def answer_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens of no and yes; raise ModelError if these are not one each."""
    words = [tokenizer.encode(word, add_special_tokens=False) for word in ("no", "yes")]
    if any(len(ids) > 1 for ids in words):
        raise ModelError("has no token for a yes or a no, which rerankers answer")
    return tuple(ids[0] for ids in words)


def scores_of(pooled: Sequence[bytes]) -> list[float]:
    """Return how relevant documents are, from 0 to 1, of what `rerank_pooling` asked for."""
    return [_sigmoid(struct.unpack(f"<{len(raw) // 4}f", raw)) for raw in pooled]


def _sigmoid(logits: tuple[float, ...]) -> float:
    """Return the share of the last logit's exponential; that of one alone is against a zero."""
    low, high = logits if len(logits) == 2 else (0.0, logits[0])
    best = max(low, high)
    return math.exp(high - best) / (math.exp(low - best) + math.exp(high - best))
