"""Engines on the nodes of a real Ray cluster: a node is lost under streams, and comes back."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from qwenapi.settings.table import etc_dir
from tests.e2e.test_replay import completion
from tests.engine.conftest import write_model
from tests.running_server import wait_for
from tests.wire.certificates import make_certificates

NUM_STREAMS = 32
STUB = ("--stub", "--stub-step-seconds", "0.01")


def engines(server):
    return {row["engine"]: row for row in server.get("/ui/status.json").json()["engines"]}


def nodes_of_ready(server):
    return {row["node"] for row in engines(server).values() if row["state"] == "ready"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_several_http_halves_share_the_engines_of_one_model_half(ray_nodes, start_server, tmp_path):
    tls = make_certificates(tmp_path / "ca")
    cluster = ("--cluster", ray_nodes.address, "--wire-tls-cert", tls.cert)
    cluster += ("--wire-tls-key", tls.key, "--wire-tls-ca", tls.ca)
    size = ("--data-parallel-size", "2")
    found = {
        check["name"]: check
        for check in json.loads(run("doctor", *cluster, *size, "--json"))["checks"]
    }
    assert "has 1 CPU free, gets engine" in found["node a"]["what"], found
    assert found["cluster"]["what"] == "2 engines find places, each of 1 CPU"
    assert "node head" not in found, "it has nothing that an engine takes"

    fronts = [start_server(*cluster, command="http", ready=False) for _ in range(2)]
    model = start_server(*STUB, *cluster, *size, command="model")
    for front in fronts:
        front.wait_until_ready()
        wait_for(lambda front=front: nodes_of_ready(front) == {"a", "b"}, 30)
    ask = completion(5, stream=True, max_tokens=400)
    answers = [ask(front) for front in fronts]
    assert answers[0] == answers[1]
    top = json.loads(run("top", "--run-dir", str(model.run_dir), "--json"))
    assert {engine["node"] for engine in top["engines"]} == {"a", "b"}

    pids = [model.row(i)["pid"] for i in range(2)]
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(ask, front) for front in fronts]
        run("reload", "model", "--run-dir", str(model.run_dir))
        assert [stream.result() for stream in running] == answers
    assert not {model.row(i)["pid"] for i in range(2)} & set(pids)
    wait_for(lambda: nodes_of_ready(fronts[0]) == {"a", "b"}, 30)

    assert model.stop() == 0
    for front in fronts:
        wait_for(lambda front=front: not list(front.run_dir.glob("*.tcp")), 20)
        assert front.stop() == 0
        assert "Traceback" not in front.log, front.log


def run(*words):
    """Return what a command says."""
    command = [sys.executable, "-m", "qwenapi", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.slow
def test_a_lost_node_costs_no_stream_and_its_engine_comes_back_with_it(ray_nodes, start_server):
    server = start_server(*STUB, "--cluster", ray_nodes.address, "--data-parallel-size", "2")
    assert nodes_of_ready(server) == {"a", "b"}
    asks = [
        completion(
            seed,
            prompt=f"{seed} is a prompt of its own: one engine would get all that begin alike",
            stream=True,
            max_tokens=200,
            temperature=0.8,
        )
        for seed in range(NUM_STREAMS)
    ]
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        whole = list(pool.map(lambda ask: ask(server), asks))
        running = [pool.submit(ask, server) for ask in asks]
        wait_for(lambda: all(server.row(i)["running"] > 4 for i in (0, 1)), 30)
        lost = ray_nodes.nodes["a"].kill_raylet()
        assert [stream.result() for stream in running] == whole
    assert any("spawn_main" in " ".join(p.info) for p in lost), "an engine was among them"
    _, alive = psutil.wait_procs(lost, timeout=20)
    assert not alive
    assert nodes_of_ready(server) == {"b"}
    assert len(engines(server)) == 2 and server.get("/readyz").status_code == 200
    (left,) = (number for number, row in engines(server).items() if row["state"] == "ready")
    os.kill(server.row(left)["pid"], signal.SIGKILL)
    wait_for(lambda: engines(server)[left]["restarts"] == 1, 30)
    wait_for(lambda: nodes_of_ready(server) == {"b"}, 30, lambda: server.log)

    ray_nodes.add("a", 21)
    wait_for(lambda: nodes_of_ready(server) == {"a", "b"}, 60, lambda: server.log)
    assert [row["restarts"] for row in engines(server).values()] == [1, 1]
    assert [ask(server) for ask in asks[:2]] == whole[:2]
    assert server.stop() == 0
    assert "Traceback" not in server.log, server.log


@pytest.mark.slow
def test_a_real_models_answers_go_on_to_the_bit_when_their_node_is_lost(
    ray_nodes, start_server, tmp_path
):
    write_demo_sized(tmp_path / "model")
    server = start_server(
        "--model", str(tmp_path / "model"), "--served-model-name", "qwen-demo",
        "--dtype", "float32", "--deterministic", "--max-num-seqs", str(NUM_STREAMS),
        "--cluster", ray_nodes.address, "--data-parallel-size", "2",
    )  # fmt: skip
    wait_for(lambda: nodes_of_ready(server) == {"a", "b"}, 60, lambda: server.log)
    assert {row["device"] for row in engines(server).values()} == {"cpu"}
    length = 400  # a node is missed some seconds after its raylet has gone
    asks = [
        completion(
            seed,
            prompt=f"{seed} is a prompt of its own: one engine would get all that begin alike",
            stream=True,
            max_tokens=length,
            temperature=0.8,
            ignore_eos=True,
            logprobs=1,
        )
        for seed in range(NUM_STREAMS)
    ]
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        whole = list(pool.map(lambda ask: ask(server), asks))
        assert all(len(logprobs[0, "tokens"]) == length for _, logprobs, *_ in whole)
        assert all(server.row(i)["generated_tokens"] for i in (0, 1)), "one had nothing to do"
        ends = completion(0, max_tokens=length)(server)
        assert ends[0]["choices"][0]["finish_reason"] == "stop", "a tenth of all tokens ends it"

        running = [pool.submit(ask, server) for ask in asks]
        wait_for(lambda: all(server.row(i)["running"] > 4 for i in (0, 1)), 30)
        lost = ray_nodes.nodes["a"].kill_raylet()
        assert not psutil.wait_procs(lost, timeout=20)[1]
        assert not any(stream.done() for stream in running), "the node was lost too late"
        assert [stream.result() for stream in running] == whole
    assert nodes_of_ready(server) == {"b"}
    ray_nodes.add("a", 21)
    wait_for(lambda: nodes_of_ready(server) == {"a", "b"}, 60, lambda: server.log)
    assert server.stop() == 0
    assert "Traceback" not in server.log, server.log


def write_demo_sized(folder):
    """Write a random Qwen3 for the demo's tokenizer, of whose tokens every tenth ends an answer."""
    demo = etc_dir() / "models" / "demo"
    size = 1 + max(token["id"] for token in read_json(demo / "tokenizer.json")["added_tokens"])
    ends = list(range(0, size, 10))
    write_model(folder, "qwen3", vocab_size=size, eos_token_id=ends)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo / name, folder)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))
