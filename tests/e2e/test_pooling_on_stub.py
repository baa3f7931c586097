"""Embeddings, reranking and scores through real gunicorn, on the stub engine: bodies and errors."""

import base64
import math
import os
import signal
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import AutoTokenizer

from tests.e2e.test_http_on_stub import raw_request
from tests.pooling_folders import HIDDEN, VOCABULARY, write_folder
from tests.running_server import RunningServer, wait_for

FLAGS = ("--stub", "--stub-step-seconds", "0.005", "--served-model-name", "it")
MAX_LENGTH = 2048
TEXTS = ["hello", "你好，世界 🙂👩\u200d💻", "<|im_start|>user", "a" * 500]


def served(tmp_path_factory, kind, *flags):
    folder = tmp_path_factory.mktemp(kind)
    write_folder(folder / "model", kind)
    server = RunningServer(folder / "run", "--model", str(folder / "model"), *FLAGS, *flags)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture(scope="module")
def embed(tmp_path_factory):
    yield from served(tmp_path_factory, "embed")


@pytest.fixture(scope="module")
def rerank(tmp_path_factory):
    yield from served(tmp_path_factory, "rerank")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_folder(folder, "embed")
    return AutoTokenizer.from_pretrained(folder)


def embedded(server, given, **fields):
    answer = server.post("/v1/embeddings", {"model": "it", "input": given, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_list_has_its_vectors_in_its_order_and_its_tokens_counted(embed, tokenizer):
    body = embedded(embed, TEXTS)
    assert body.keys() == {"object", "data", "model", "usage"}
    assert (body["object"], body["model"]) == ("list", "it")
    assert [item["index"] for item in body["data"]] == list(range(len(TEXTS)))
    assert {item["object"] for item in body["data"]} == {"embedding"}
    for item, text in zip(body["data"], TEXTS, strict=True):
        assert len(item["embedding"]) == HIDDEN
        assert math.hypot(*item["embedding"]) == pytest.approx(1, abs=1e-5)
        assert item["embedding"] == embedded(embed, text)["data"][0]["embedding"]
    num_tokens = sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_tokens_are_taken_as_they_are(embed, tokenizer):
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    text = embedded(embed, TEXTS[0])["data"]
    assert embedded(embed, ids)["data"] == embedded(embed, [ids])["data"] == text
    assert embedded(embed, ids[:-1])["data"] != text
    bare = embedded(embed, TEXTS[0], add_special_tokens=False)
    assert bare["data"] == embedded(embed, ids[:-1])["data"]


def test_base64_is_the_same_numbers(embed):
    floats = [item["embedding"] for item in embedded(embed, TEXTS)["data"]]
    coded = embedded(embed, TEXTS, encoding_format="base64")["data"]
    for numbers, item in zip(floats, coded, strict=True):
        raw = base64.b64decode(item["embedding"])
        assert list(struct.unpack(f"<{HIDDEN}f", raw)) == numbers


def test_fewer_dimensions_are_the_first_ones_brought_to_length_one(embed):
    whole = embedded(embed, "hello")["data"][0]["embedding"]
    cut = embedded(embed, "hello", dimensions=16)["data"][0]["embedding"]
    length = math.hypot(*whole[:16])
    assert cut == pytest.approx([number / length for number in whole[:16]], abs=1e-6)


def test_two_thousand_texts_are_one_call(embed):
    body = embedded(embed, [f"text {i}" for i in range(2048)], encoding_format="base64")
    assert len({item["embedding"] for item in body["data"]}) == 2048
    embed.wait_until_idle()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [VOCABULARY]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": HIDDEN + 1}, "dimensions"),
        ({"input": "a", "dimensions": 1.5}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"input": "a", "normalize": False}, "normalize"),
    ],
)
def test_what_is_wrong_is_named(embed, fields, param):
    answer = embed.post("/v1/embeddings", {"model": "it", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_the_context_may_be_filled_and_not_more(embed):
    assert embedded(embed, [5] * MAX_LENGTH)["usage"]["total_tokens"] == MAX_LENGTH
    answer = embed.post("/v1/embeddings", {"model": "it", "input": ["a", "word " * 9000]})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded" and "answer" not in error["message"]


def test_unknown_fields_and_names_are_told(embed):
    body = {"model": "it", "input": "a", "user": "me", "colour": 1}
    answer = embed.post("/v1/embeddings", body)
    assert answer.status_code == 200 and answer.headers["X-Ignored"] == "user, colour"
    assert embed.post("/v1/embeddings", body | {"model": "x"}).status_code == 404


def test_a_model_of_embeddings_does_nothing_else_and_says_so(embed):
    chat = {"model": "it", "messages": [{"role": "user", "content": "a"}]}
    for path, body in {
        "/v1/chat/completions": chat,
        "/v1/completions": {"model": "it", "prompt": "a"},
        "/v1/rerank": {"model": "it", "query": "a", "documents": ["b"]},
        "/score": {"model": "it", "text_1": "a", "text_2": "b"},
    }.items():
        answer = embed.post(path, body)
        assert answer.status_code == 400, path
        error = answer.json()["error"]
        assert error["code"] == "task_unsupported" and "/v1/embeddings" in error["message"]
    assert embed.post("/tokenize", chat).status_code == 200
    card = embed.get("/v1/models/it").json()
    assert (card["task"], card["dimensions"]) == ("embed", HIDDEN)
    assert "default_sampling_params" not in card


def test_a_model_that_generates_makes_no_embeddings_and_says_so(stub_server):
    for path, body in {
        "/v1/embeddings": {"input": "a"},
        "/rerank": {"query": "a", "documents": ["b"]},
        "/v1/score": {"text_1": "a", "text_2": "b"},
    }.items():
        answer = stub_server.post(path, body)
        assert answer.status_code == 400
        assert "/v1/chat/completions" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_back_sorted(rerank, path):
    documents = ["a", {"text": "你好 " * 20}, "🙂 " * 5]
    body = {"model": "it", "query": "who?", "documents": documents}
    answer = rerank.post(path, body).json()
    assert answer.keys() == {"id", "model", "usage", "results"}
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True) and all(0 < score < 1 for score in scores)
    assert [result["index"] for result in answer["results"]] == [1, 2, 0]  # the longest is best
    assert answer["results"][0]["document"] == {"text": documents[1]["text"]}
    best = rerank.post(path, body | {"top_n": 1, "return_documents": False}).json()["results"]
    assert best == [{"index": 1, "relevance_score": scores[0]}]


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_texts_are_compared_one_with_all_or_each_with_its_own(rerank, path):
    def scores(first, second):
        body = {"model": "it", "text_1": first, "text_2": second}
        answer = rerank.post(path, body).json()
        assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
        assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
        return [item["score"] for item in answer["data"]]

    one = scores("a", ["b", "c c c c"])
    assert one == scores("a", "b") + scores("a", "c c c c") == scores(["a", "a"], ["b", "c c c c"])


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a"}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b", {"title": "c"}]}, "documents[1]"),
        ("/v1/rerank", {"query": "a", "documents": ["b", ""]}, "documents[1]"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "max_chunks_per_doc": 2},
         "max_chunks_per_doc"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": {"text": "a"}, "text_2": ["c"]}, "text_1"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_documents_is_named(rerank, path, fields, param):
    answer = rerank.post(path, {"model": "it", **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_long_query_beside_many_documents_is_refused_before_it_is_computed(rerank):
    body = {"model": "it", "query": "word " * 100_000, "documents": ["a"] * 2048}
    answer = rerank.post("/v1/rerank", body)
    assert answer.status_code == 400 and "tokens" in answer.json()["error"]["message"]


def test_many_at_once_get_their_own(embed):
    with ThreadPoolExecutor(16) as pool:
        bodies = list(pool.map(lambda i: embedded(embed, [f"{i}", f"{i} more"]), range(64)))
    assert all(body["data"] == embedded(embed, [f"{i}", f"{i} more"])["data"]
               for i, body in enumerate(bodies))  # fmt: skip


def test_the_reports_count_prompts_and_no_answers(embed):
    before = embed.get("/api/v1/metrics").json()["tokens"]
    num_tokens = embedded(embed, TEXTS)["usage"]["prompt_tokens"]
    after = embed.get("/api/v1/metrics").json()["tokens"]
    assert after["total_input"] - before["total_input"] == num_tokens, (before, after)
    assert after["total_output"] == before["total_output"]
    assert embed.get("/metrics").status_code == embed.get("/stats").status_code == 200


@pytest.fixture
def slow(tmp_path):
    """Return a server that takes four prompts a second."""
    write_folder(tmp_path / "model", "embed")
    flags = ("--model", str(tmp_path / "model"), "--stub", "--stub-step-seconds", "0.25")
    server = RunningServer(tmp_path / "run", *flags, "--max-num-seqs", "1")
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def test_a_caller_who_leaves_frees_the_engine(slow):
    with raw_request(slow, {"input": ["text"] * 500}, "/v1/embeddings"):
        before = slow.row()["step"]
        wait_for(lambda: slow.row()["step"] > before + 2)
    started = time.monotonic()
    embedded_bare(slow, "mine")  # behind all of them it would wait for a minute
    assert time.monotonic() - started < 10


def test_an_engine_that_is_killed_is_followed_by_another(slow):
    alone = [embedded_bare(slow, f"{i}") for i in range(2)]
    with ThreadPoolExecutor(1) as pool:
        before = slow.row()["step"]
        asked = pool.submit(slow.post, "/v1/embeddings", {"input": ["0", "1"] * 8})
        wait_for(lambda: slow.row()["step"] > before + 2)
        os.kill(slow.row()["pid"], signal.SIGKILL)
        data = asked.result().json()["data"]
    assert slow.row()["starts"] == 2
    assert [item["embedding"] for item in data] == alone * 8


def embedded_bare(server, text):
    return server.post("/v1/embeddings", {"input": text}).json()["data"][0]["embedding"]
