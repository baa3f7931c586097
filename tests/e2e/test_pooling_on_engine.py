"""Embeddings and scores of a served model are transformers', whoever else asks."""

import base64
import math
import struct
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from transformers import AutoTokenizer

from tests.pooling_folders import write_folder
from tests.running_server import RunningServer

# Few tokens a step and small blocks, so that prompts are cut and their beginnings shared.
FLAGS = ("--dtype", "float32", "--device", "cpu", "--threads", "1", "--served-model-name", "it")
STEPS = ("--max-num-batched-tokens", "64", "--max-num-seqs", "16", "--block-size", "8")
TEXTS = ["hello", "你好，世界 🙂👩\u200d💻", "write a poem about the sea " * 8, "<|im_end|>"]
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
QUERY = "Where is the sea? 海在哪里?\n"
DOCUMENTS = ["The sea is blue.", "海在东边 🙂。", "def sort(x): return x " * 9, "\n<Query>: no"]


class Served:
    def __init__(self, server, model, tokenizer):
        self.server, self.model, self.tokenizer = server, model, tokenizer


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Return what serves a tiny model of a kind, and the model; started once each."""
    made = {}

    def serve(kind, num_ranks=1):
        if (kind, num_ranks) not in made:
            folder = tmp_path_factory.mktemp(kind)
            model = write_folder(folder / "model", kind)
            ranks = ("--tensor-parallel-size", str(num_ranks))
            flags = ("--model", str(folder / "model"), *FLAGS, *STEPS, *ranks)
            server = RunningServer(folder / "run", *flags).wait_until_ready()
            tokenizer = AutoTokenizer.from_pretrained(folder / "model")
            made[kind, num_ranks] = Served(server, model, tokenizer)
        return made[kind, num_ranks]

    yield serve
    for served in made.values():
        assert served.server.stop() == 0


def vector(served, text, dimensions=None):
    ids = torch.tensor([served.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        hidden = served.model.model(ids).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(hidden[:dimensions], dim=-1).tolist()


def relevance(served, query, document, instruction=INSTRUCTION):
    """Return what the model card's program computes."""
    asked = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    parts = [served.tokenizer(text, add_special_tokens=False) for text in (BEFORE, asked, AFTER)]
    ids = torch.tensor([[token for part in parts for token in part["input_ids"]]])
    with torch.no_grad():
        logits = served.model(ids).logits[0]
    if logits.ndim == 1:
        return logits.sigmoid().item()
    answers = [served.tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes")]
    return logits[-1, answers].log_softmax(0)[1].exp().item()


def test_vectors_are_transformers_alone_and_64_at_once(serve):
    served = serve("embed")
    texts = [f"{text} {i}" for i in range(16) for text in TEXTS]
    expected = [vector(served, text) for text in texts]

    def ask(given):
        answer = served.server.post("/v1/embeddings", {"input": given}).json()
        return [item["embedding"] for item in answer["data"]]

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(ask, [texts[i : i + 8] for i in range(0, 64, 8)]))
    one_by_one = [ask(text)[0] for text in texts[:4]]  # now behind a cached beginning
    together = ask(texts)
    for found in (sum(parts, []), together, one_by_one):
        for numbers, wanted in zip(found, expected, strict=False):
            assert numbers == pytest.approx(wanted, abs=1e-4)


def test_two_ranks_give_the_vectors_of_one(serve):
    found = []
    for num_ranks in (1, 2):
        server = serve("embed", num_ranks).server
        data = server.post("/v1/embeddings", {"input": TEXTS, "dimensions": 24}).json()["data"]
        found.append([number for item in data for number in item["embedding"]])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[1] != found[0], "sums of two parts are rounded in another place"


def test_openais_client_reads_them_in_both_forms(serve):
    served = serve("embed")
    client = openai.OpenAI(base_url=f"{served.server.url}/v1", api_key="any")
    expected = [vector(served, text, 24) for text in TEXTS]
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = client.embeddings.create(model="it", input=TEXTS, dimensions=24, **options)
        for item, wanted in zip(answer.data, expected, strict=True):
            numbers = item.embedding
            if isinstance(numbers, str):
                numbers = struct.unpack("<24f", base64.b64decode(numbers))
            assert list(numbers) == pytest.approx(wanted, abs=1e-4)
        num_tokens = sum(len(served.tokenizer(text)["input_ids"]) for text in TEXTS)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == num_tokens
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.chat.completions.create(model="it", messages=[{"role": "user", "content": "a"}])


@pytest.mark.parametrize("kind", ["rerank", "classifier"])
def test_scores_are_the_model_cards(serve, kind):
    served = serve(kind)
    expected = [relevance(served, QUERY, document) for document in DOCUMENTS]
    assert len({round(score, 4) for score in expected}) > 1, "all alike"
    body = {"query": QUERY, "documents": DOCUMENTS}
    ranked = served.server.post("/v1/rerank", body).json()["results"]
    assert [result["index"] for result in ranked] == sorted(range(4), key=lambda i: -expected[i])
    for result in ranked:
        assert result["relevance_score"] == pytest.approx(expected[result["index"]], abs=1e-4)
    scored = served.server.post("/v1/score", {"text_1": QUERY, "text_2": DOCUMENTS}).json()
    assert [item["score"] for item in scored["data"]] == pytest.approx(expected, abs=1e-4)


def test_two_ranks_give_the_scores_of_one(serve):
    body = {"text_1": QUERY, "text_2": DOCUMENTS}
    found = []
    for num_ranks in (1, 2):
        answer = serve("rerank", num_ranks).server.post("/v1/score", body).json()
        found.append([item["score"] for item in answer["data"]])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[1] != found[0], "sums of two parts are rounded in another place"


def test_another_instruction_makes_other_scores(serve):
    served = serve("rerank")
    body = {"text_1": QUERY, "text_2": DOCUMENTS[0], "instruction": "Find code"}
    score = served.server.post("/v1/score", body).json()["data"][0]["score"]
    assert score == pytest.approx(relevance(served, QUERY, DOCUMENTS[0], "Find code"), abs=1e-4)
    assert not math.isclose(score, relevance(served, QUERY, DOCUMENTS[0]), abs_tol=1e-4)
