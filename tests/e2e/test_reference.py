"""The reference says what the server does: every address, every field, every body."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
import requests
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from qwenapi.openapi.operations import OPERATIONS
from qwenapi.openapi.spec import WORDS
from tests.e2e.browser.chromium import browser_fixture  # noqa: F401
from tests.running_server import RunningServer

# Of each operation that takes a body: fifteen of them.
NUM_CASES = int(os.environ.get("QWENAPI_TEST_CASES", "25"))
CHAT = {"model": "qwen-demo", "messages": [{"role": "user", "content": "你好 🙂"}]}
MESSAGES = CHAT | {"max_tokens": 4}
INPUT = {"model": "qwen-demo", "input": "你好 🙂"}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--stub", "--profile", "all", "--max-model-len", "256", "--default-max-tokens", "4")
    server = RunningServer(tmp_path_factory.mktemp("reference") / "run", *flags)
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture(scope="module")
def document(server):
    return server.get("/openapi.json").json()


def test_it_is_openapi_3_1(document):
    assert document["openapi"] == "3.1.0"
    validate(document)


def test_a_server_of_all_interfaces_documents_every_operation(document):
    found = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert found >= set(OPERATIONS)
    assert {path for path in document["paths"] if path.startswith(("/ui", "/docs"))} == set()


def test_a_server_of_one_interface_documents_only_that(tmp_path):
    server = RunningServer(tmp_path / "run", "--stub", "--profile", "qwen2")
    try:
        paths = server.wait_until_ready().get("/openapi.json").json()["paths"]
        assert "/generate" in paths and "/v1/completions" not in paths
        assert server.stop() == 0
    finally:
        server.close()


def test_each_operation_and_field_is_described_in_both_languages(document):
    described = [
        operation["description"]
        for operations in document["paths"].values()
        for operation in operations.values()
    ]
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            for field, facts in schema["properties"].items():
                assert "description" in facts, f"{name}.{field}"
                described.append(facts["description"])
    assert len(described) > 80
    for text in described:
        english, chinese = text.split("\n\n")
        assert english and not CHINESE.search(english) and CHINESE.search(chinese), text


def test_no_words_are_left_over(document):
    words = tomllib.loads(WORDS.read_text(encoding="utf-8"))
    schemas = document["components"]["schemas"]
    fields = {field for schema in schemas.values() for field in schema.get("properties", ())}
    assert set(words["fields"]) <= fields
    assert set(words["operations"]) == set(OPERATIONS)
    statuses = {str(status) for o in OPERATIONS.values() for status in o.errors}
    assert set(words["errors"]) - {"401", "403", "405"} == statuses


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("POST", "/v1/chat/completions", {"json": CHAT}, 200),
        ("POST", "/v1/chat/completions", {"json": CHAT | {"logprobs": True, "n": 2}}, 200),
        ("POST", "/v1/chat/completions", {"json": CHAT | {"model": "nobody"}}, 404),
        ("POST", "/v1/chat/completions", {"json": CHAT | {"temperature": 9}}, 400),
        ("POST", "/v1/completions", {"json": {"model": "qwen-demo", "prompt": "a b c"}}, 200),
        ("POST", "/v1/messages", {"json": MESSAGES}, 200),
        ("POST", "/v1/messages", {"json": MESSAGES | {"temperature": 9}}, 400),
        ("POST", "/v1/messages", {"json": MESSAGES | {"model": "nobody"}}, 404),
        ("POST", "/v1/messages/count_tokens", {"json": CHAT}, 200),
        ("POST", "/v1/responses", {"json": INPUT | {"max_output_tokens": 4}}, 200),
        ("POST", "/v1/responses", {"json": INPUT | {"background": True}}, 200),
        ("POST", "/v1/responses", {"json": INPUT | {"temperature": 9}}, 400),
        ("POST", "/v1/responses/input_tokens", {"json": INPUT}, 200),
        ("POST", "/v1/conversations", {"json": {"items": "你好", "metadata": {"a": "b"}}}, 200),
        ("POST", "/v1/files", {"files": {"file": b"{}"}, "data": {"purpose": "batch"}}, 200),
        ("POST", "/v1/files", {"files": {"file": b"{}"}}, 400),
        ("GET", "/v1/files", {}, 200),
        ("POST", "/v1/batches", {"json": {"endpoint": "/v1/completions"}}, 400),
        ("GET", "/v1/batches", {}, 200),
        ("GET", "/v1/models", {}, 200),
        ("POST", "/v1/embeddings", {"json": {"input": "a"}}, 400),
        ("POST", "/v1/rerank", {"json": {"query": "a", "documents": ["b"]}}, 400),
        ("POST", "/tokenize", {"json": CHAT}, 200),
        ("POST", "/tokenize", {"json": {"prompt": "a b", "return_token_strs": True}}, 200),
        ("POST", "/detokenize", {"json": {"tokens": [1, 2]}}, 200),
        ("GET", "/tokenizer_info", {}, 200),
        ("POST", "/generate", {"json": {"prompt": "a b c"}}, 200),
        ("POST", "/generate", {"json": {}}, 422),
        ("POST", "/v1/code/generate", {"data": {"prompt": "a b c"}}, 200),
        ("POST", "/v1/code/generate", {"files": {"prompt": "a b c"}}, 415),
        ("GET", "/api/v1/metrics", {}, 200),
        ("GET", "/stats", {}, 200),
        ("GET", "/metrics", {}, 200),
        ("GET", "/version", {}, 200),
        ("GET", "/load", {}, 200),
        ("GET", "/readyz", {}, 200),
        ("GET", "/health", {}, 200),
        ("GET", "/", {}, 200),
    ],
)
def test_answers_are_as_documented(server, document, method, path, options, status):
    answer = requests.request(method, server.url + path, timeout=30, **options)
    assert answer.status_code == status, answer.text
    content = document["paths"][path][method.lower()]["responses"][str(status)]["content"]
    schema = content["application/json"]["schema"] | {"components": document["components"]}
    Draft202012Validator(schema).validate(answer.json())


def test_no_request_the_reference_allows_makes_the_server_fail(server, tmp_path):
    """schemathesis makes the requests, valid and not, and holds the answers against the document;
    one body in five is refused for what a schema cannot say, such as two fields at odds.
    """
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", server.url + "/openapi.json"),
        *("--checks", checks + ",response_schema_conformance"),
        *("--phases", "fuzzing", "--max-examples", str(NUM_CASES), "--seed", "1"),
        *("--no-color", "--generation-database", "none", "--suppress-health-check", "all"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path)
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    generated = re.search(r"(\d[\d,]*) generated", done.stdout)
    assert generated and int(generated[1].replace(",", "")) >= 15 * NUM_CASES


def test_the_page_shows_the_reference_and_asks_nobody_else(server, browser):
    ready = ':text("chat_stream") >> nth=0'
    with browser.open(server.url + "/docs/", ready=ready):
        pass  # what goes wrong in a page fails its closing


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_has_the_chat_pages_colours_in_either_theme(server, browser, theme):
    body = "document.body"
    with browser.open(server.url + "/ui/", ready="#composer", theme=theme) as page:
        chat = ground(page, body)
    with browser.open(server.url + "/docs/", ready="rapi-doc main", theme=theme) as page:
        viewer = "document.querySelector('rapi-doc')"
        assert ground(page, body) == ground(page, viewer) == chat
        page.click("#theme-btn")
        assert ground(page, body) == ground(page, viewer) != chat


def ground(page, element):
    return page.evaluate(f"getComputedStyle({element}).backgroundColor")


def test_without_the_last_slash_the_page_is_found_too(server):
    answer = requests.get(server.url + "/docs", timeout=30)
    assert answer.status_code == 200 and answer.url == server.url + "/docs/"
