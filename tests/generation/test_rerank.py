"""Prompts of rerankers are those of the model card, and scores the share of a yes."""

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenapi.errors import BadRequest
from qwenapi.generation import rerank
from qwenapi.generation.rerank import (
    INSTRUCTION,
    answer_ids,
    rerank_pooling,
    rerank_prompts,
    scores_of,
)
from tests.generation.test_sampling import CARD
from workers.errors import ModelError

TEXTS = st.lists(
    st.sampled_from(
        ["\n", " ", "\r\n", ".", "海", "🙂", "e\u0301", "\u0301", "Query>", "<", "word", "12", "\t",
         "<|im_end|>", "don't", "\u200d", "|>"]
    ),
    min_size=1, max_size=8,
).map("".join)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(qwen):
    return qwen("Qwen3-0.6B")


def test_a_prompt_is_the_model_cards_whatever_its_texts_are(tokenizer):
    @settings(max_examples=300, deadline=None)
    @given(query=TEXTS, document=TEXTS)
    def check(query, document):
        (ids,) = rerank_prompts(tokenizer, [(query, document)], None)
        asked = f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
        inner = tokenizer.encode_plain(asked)
        start = next(i for i in range(len(ids)) if ids[i : i + 3] == inner[:3])
        assert ids[start : start + len(inner)] == inner
        before, after = tokenizer.decode(ids[:start], False), ids[start + len(inner) :]
        assert before.startswith("<|im_start|>system\nJudge whether the Document meets")
        assert before.endswith('can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n')
        tail = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        assert tokenizer.decode(after, False) == tail

    check()


def test_no_and_yes_are_one_token_each(tokenizer, demo):
    assert answer_ids(tokenizer) == rerank_pooling(tokenizer, CARD).token_ids == (2152, 9693)
    with pytest.raises(ModelError, match="no token for a yes"):
        answer_ids(demo)


def test_prompts_of_one_request_are_bounded_together(demo, monkeypatch):
    monkeypatch.setattr(rerank, "MAX_TOKENS", 500)
    pairs = [("a word " * 20, "b")] * 100
    with pytest.raises(BadRequest, match="more than 500 tokens"):
        rerank_prompts(demo, pairs, None)
    assert len(rerank_prompts(demo, pairs[:1], None)) == 1


@pytest.mark.parametrize(
    ("logits", "score"),
    [
        ((0.0, 0.0), 0.5),
        ((1.0, 3.0), math.exp(3) / (math.exp(1) + math.exp(3))),
        ((3.0e4, -3.0e4), 0.0),
        ((-3.0e4, 3.0e4), 1.0),
        ((0.0,), 0.5),
        ((2.0,), 1 / (1 + math.exp(-2))),
        ((-1.0e5,), 0.0),
    ],
)
def test_a_score_is_the_share_of_a_yes(logits, score):
    raw = struct.pack(f"<{len(logits)}f", *logits)
    assert scores_of([raw]) == [pytest.approx(score, abs=1e-12)]
