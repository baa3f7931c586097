"""Document 001: `POST /generate`, `GET /`, `GET /health`."""

import os
import subprocess
import sys

import psutil
import pytest
import requests

from tests.running_server import wait_for

PARAMETERS = ["prompt", "max_length", "temperature", "top_p", "top_k", "num_return_sequences"]


def test_the_service_describes_itself(generate):
    assert generate.get("/").json() == {
        "name": "Qwen2-7B-Instruct API",
        "version": "1.0.0",
        "status": "active",
        "model": "Qwen/Qwen2-7B-Instruct",
    }
    page = requests.get(generate.url + "/", headers={"Accept": "text/html"}, timeout=10)
    assert page.json()["status"] == "active", "this profile never sends a browser away"
    assert generate.get("/health").json() == {"status": "healthy"}


def test_a_prompt_alone_gets_the_documented_defaults_echoed(generate):
    answer = generate.post("/generate", {"prompt": "写一个函数"})
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["generated_texts", "parameters"]
    assert list(body["parameters"]) == PARAMETERS
    assert list(body["parameters"].values()) == ["写一个函数", 512, 0.7, 0.9, 50, 1]
    assert len(body["generated_texts"]) == 1


def test_several_sequences_numbers_in_quotes_and_greedy(generate):
    asked = {"prompt": "hi", "max_length": "12", "temperature": 0, "num_return_sequences": 3.0}
    answer = generate.post("/generate", asked | {"foo": 1})
    assert answer.status_code == 200 and answer.headers["X-Ignored"] == "foo"
    assert len(answer.json()["generated_texts"]) == 3
    assert answer.json()["parameters"]["max_length"] == 12


@pytest.mark.parametrize(
    ("body", "kind", "loc"),
    [
        ({}, "missing", ["body", "prompt"]),
        ({"prompt": 5}, "type_error", ["body", "prompt"]),
        ({"prompt": "x", "max_length": 0}, "value_error", ["body", "max_length"]),
        ({"prompt": "x", "temperature": "hot"}, "type_error", ["body", "temperature"]),
        (
            {"prompt": "x", "num_return_sequences": 9},
            "value_error",
            ["body", "num_return_sequences"],
        ),
        ({"prompt": "x " * 9000}, "value_error", ["body", "prompt"]),
    ],
)
def test_a_bad_request_is_a_422_list(generate, body, kind, loc):
    answer = generate.post("/generate", body)
    assert answer.status_code == 422
    (fault,) = answer.json()["detail"]
    assert (fault["type"], fault["loc"]) == (kind, loc)


def test_broken_json_is_a_422_list_and_an_unknown_address_a_detail(generate):
    headers = {"Content-Type": "application/json"}
    answer = requests.post(generate.url + "/generate", data=b"{", headers=headers, timeout=10)
    assert answer.status_code == 422 and answer.json()["detail"][0]["type"] == "json_invalid"
    assert list(generate.get("/nowhere").json()) == ["detail"]


def test_while_the_model_loads_it_says_so(tmp_path, start_server):
    flags = ("--profile", "qwen2", "--model-run-dir", str(tmp_path / "none"))
    server = start_server(*flags, command="http", ready=False)
    wait_for(lambda: "http started" in server.log)
    process = psutil.Process(server.process.pid)
    port = next(c.laddr.port for c in process.net_connections() if c.status == "LISTEN")
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: requests.get(url + "/livez", timeout=10).status_code == 200)
    for answer in (
        requests.get(url + "/health", timeout=10),
        requests.post(url + "/generate", json={"prompt": "x"}, timeout=10),
    ):
        assert answer.status_code == 503
        assert answer.json() == {"detail": "Model or tokenizer not loaded"}


def test_the_command_line_client_of_the_document(generate):
    def ask(*flags):
        command = [sys.executable, "-m", "qwenapi", "ask", "--url", generate.url, *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert ask("--max-length", "5").returncode == 0
    flags = ("--prompt", "写一个递归函数", "--max-length", "256", "--temperature", "0.8")
    done = ask(*flags, "--top-p", "0.95", "--num-sequences", "2")
    assert done.returncode == 0 and "--- 2 ---" in done.stdout
    done = ask("--temperature", "9")
    assert done.returncode == 1 and "answered 422" in done.stderr
    done = ask("--url", "http://127.0.0.1:9")
    assert done.returncode == 1 and "no answer" in done.stderr


def test_the_command_line_client_presents_a_key(start_server):
    server = start_server("--stub", "--profile", "qwen2", environ={"QWENAPI_API_KEY": "secret"})

    def ask(*flags, **environ):
        command = [sys.executable, "-m", "qwenapi", "ask", "--url", server.url, "--max-length", "5"]
        env = {k: v for k, v in os.environ.items() if k != "QWENAPI_API_KEY"} | environ
        done = subprocess.run(
            [*command, *flags], capture_output=True, text=True, timeout=60, env=env
        )
        return done.returncode, done.stderr

    assert ask("--api-key", "secret") == (0, "")
    assert ask(QWENAPI_API_KEY="secret") == (0, "")
    assert ask("--api-key", "secret", QWENAPI_API_KEY="other") == (0, "")
    assert "answered 401" in ask()[1] and "answered 401" in ask("--api-key", "x")[1]


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json"}])
def test_a_post_without_a_body_lacks_its_prompt_as_fastapi_says_it(generate, headers):
    answer = requests.post(generate.url + "/generate", headers=headers, timeout=30)
    assert answer.status_code == 422
    (fault,) = answer.json()["detail"]
    assert (fault["type"], fault["loc"]) == ("missing", ["body", "prompt"])
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert requests.post(generate.url + "/generate", headers=form, timeout=30).status_code == 415
