"""What the benchmark of an engine and the check on a GPU compute and print, without a GPU."""

import argparse
import json
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from qwenapi import cli
from qwenapi.commands.bench import command
from tests.gpu import check, models, transformers_serve
from tests.gpu.roofline import Ceilings, Dimensions, decode_bound, prefill_bound
from workers.engine_core import StepOutput
from workers.errors import ConfigError
from workers.wire.protocol import Chunk, Failed, Finished, ModelCard
from workers.worker import bench
from workers.worker.bench import Workload

H200 = Ceilings(bandwidth=4.3e12, products=790e12)
SIZES = models.QWEN3 | {
    "Qwen3-14B": Dimensions(40, 5120, 40, 8, 17408),
    "Qwen2.5-7B": Dimensions(28, 3584, 28, 4, 18944, vocabulary=152_064),
}
POINTS = ((1, 0), (1, 1024), (64, 1024), (64, 4096), (256, 1024))
BOUNDS = {
    "Qwen3-0.6B": (3607, 3284, 31602, 8804, 35218),
    "Qwen3-8B": (284, 281, 11097, 5116, 20464),
    "Qwen3-14B": (154, 153, 7108, 3880, 15519),
    "Qwen3-32B": (67.2, 66.9, 3391, 2074, 8296),
    "Qwen3-30B-A3B": (707, 695, 4173, 3227, 12769),
    "Qwen2.5-7B": (304, 303, 15375, 9433, 37733),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_those_of_the_engine_notes(name):
    for (rows, context), expected in zip(POINTS, BOUNDS[name], strict=True):
        assert decode_bound(SIZES[name], rows, context, H200) == pytest.approx(expected, rel=0.003)


def test_weights_and_cache_are_counted_as_in_the_engine_notes():
    found = {name: size.token_bytes for name, size in SIZES.items()}
    assert (found["Qwen3-8B"], found["Qwen3-32B"]) == (147_456, 262_144)
    assert found["Qwen3-30B-A3B"] == 98_304
    assert 2 * SIZES["Qwen3-8B"].read_weights(1) == pytest.approx(15.14e9, rel=0.001)
    assert 2 * SIZES["Qwen3-32B"].read_weights(64) == pytest.approx(63.97e9, rel=0.001)
    moe = SIZES["Qwen3-30B-A3B"]
    assert 2 * moe.read_weights(1) == pytest.approx(6.08e9, rel=0.002)
    assert 2 * moe.read_weights(64) == pytest.approx(59.5e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Qwen3-0.6B", 898e3), ("Qwen3-8B", 56.8e3), ("Qwen3-32B", 12.7e3), ("Qwen3-30B-A3B", 145e3)],
)
def test_prefill_is_bound_by_the_products_of_the_layers(name, expected):
    assert prefill_bound(SIZES[name], H200) == pytest.approx(expected, rel=0.01)


def test_many_rows_are_bound_by_products():
    assert decode_bound(SIZES["Qwen3-8B"], 4096, 0, H200) == pytest.approx(
        790e12 / 15.14e9, rel=0.01
    )


def test_dimensions_are_what_the_models_have():
    """As transformers counts them, on no device: all but the embedding and norms are read."""
    import torch
    from transformers import AutoModelForCausalLM

    for size in (models.tiny(size) for size in models.QWEN3.values()):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(models.configure(size))
        counted = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        embedding = 0 if size.is_tied else size.head_weights
        assert size.read_weights(10**6) == counted - embedding


def test_busy_share_counts_overlapping_work_once():
    assert bench.busy_share([(0, 4), (1, 2), (3, 5), (9, 10)]) == 0.6
    assert (bench.busy_share([(5, 6)]), bench.busy_share([])) == (1, 0)
    chosen = random.Random(3)
    for _ in range(50):
        starts = [chosen.randrange(40) for _ in range(8)]
        spans = [(start, start + chosen.randint(1, 9)) for start in starts]
        covered = {tick for start, end in spans for tick in range(start, end)}
        length = max(end for _, end in spans) - min(starts)
        assert bench.busy_share(spans) == pytest.approx(len(covered) / length)


class TimedEngine:
    """Of a step's two seconds nothing is guessed: it computes `budget` tokens, decodes first, and
    knows the prompts it has seen before.
    """

    def __init__(self, clock: list[float], budget: int = 100, **card: int) -> None:
        limits = {"max_model_len": 1000, "block_size": 10, "num_blocks": 1000, "max_num_seqs": 8}
        self.card = ModelCard(
            model_dir="", model_hash="", tokenizer_sha256="", architecture="", vocab_size=50_000,
            eos_token_ids=(), generation_config={}, dtype="", device="cpu",
            max_num_batched_tokens=budget, **limits | card,
        )  # fmt: skip
        self._clock, self._budget = clock, budget
        self._left: dict[object, list[int]] = {}  # prompt tokens, new tokens
        self._seen: set[tuple[int, ...]] = set()
        self._params = {}

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def add(self, key, request) -> None:
        is_known = request.prompt_ids in self._seen
        self._left[key] = [1 if is_known else len(request.prompt_ids), request.params.max_tokens]
        self._seen.add(request.prompt_ids)
        self._params[key] = request.params

    def step(self) -> StepOutput:
        self._clock[0] += 2.0
        output, budget = StepOutput(), self._budget
        for key, left in sorted(self._left.items(), key=lambda item: item[1][0]):
            taken = min(max(left[0], 1), budget)
            budget -= taken
            left[0] = max(0, left[0] - taken)
            if not taken or left[0]:
                continue
            left[1] -= 1
            output.chunks.append((key, Chunk(key[1], 0, 0, (7,))))
            if not left[1]:
                output.finished.append((key, Finished(key[1], 0, 0)))
                del self._left[key]
        return output


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    return now


def test_rates_come_from_the_steps_that_have_every_stream(clock):
    engine = TimedEngine(clock)
    result = bench.measure(engine, Workload(4, prompt_tokens=50, max_tokens=9, rounds=2))
    # Two prompts a step of 2 s; then four tokens a step.
    assert result.prefill == (50.0, 50.0)
    assert result.ttft_ms == (2000, 2000, 4000, 4000) * 2
    assert result.decode == (2.0, 2.0)
    assert (result.gpu_busy, result.peak_bytes) == (None, None)
    assert not engine.has_work


def test_requests_are_random_greedy_and_nothing_stops_them(clock):
    engine = TimedEngine(clock)
    prompts = bench.make_prompts(engine.card, Workload(3, 20), seed=1)
    assert [len(prompt) for prompt in prompts] == [20, 20, 20]
    assert len({*prompts, *bench.make_prompts(engine.card, Workload(3, 20), seed=2)}) == 6
    bench.measure(engine, Workload(1, 20, 5, temperature=0.5, rounds=1))
    assert all(p.ignore_eos and p.temperature == 0.5 for p in engine._params.values())


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        (Workload(9, 10, 10), "needs 9, but --max-num-seqs or --max-num-batched-tokens leaves 8"),
        (Workload(1, 990, 11), "needs 1001, but --max-model-len leaves 1000"),
        (Workload(8, 900, 100), "needs 800, but --num-blocks leaves 98"),
        (Workload(1, 50, 1), "raise --max-tokens"),
    ],
)
def test_a_load_that_does_not_fit_is_refused_with_its_setting(clock, workload, words):
    engine = TimedEngine(clock, num_blocks=100 if workload.streams == 8 else 1000)
    with pytest.raises(ConfigError, match=words):
        bench.measure(engine, workload)


def test_a_model_that_gives_no_answers_is_not_measured(clock):
    engine = TimedEngine(clock)
    engine.card = msgspec.structs.replace(engine.card, task="embed")
    with pytest.raises(ConfigError, match="served for embed only"):
        bench.measure(engine, Workload(1, 10, 10))


def test_a_failed_request_ends_the_measurement(clock):
    engine = TimedEngine(clock)
    engine.step = lambda: StepOutput(failed=[((0, 0), Failed(0, "queue_timeout"))])
    with pytest.raises(Exception, match="queue_timeout"):
        bench.measure(engine, Workload(1, 5, 5))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    size = models.tiny(models.QWEN3["Qwen3-0.6B"])
    directory = models.write(tmp_path_factory.mktemp("bench") / "tiny", size)
    models.write_weights(directory, size, "float32", "cpu")
    return directory


def run_cli(*words: str) -> int:
    return cli.main(["bench", *words])


def test_the_command_measures_an_engine_in_this_process(model, tmp_path, capsys):
    file = tmp_path / "out.json"
    words = ["--engine", "--model", str(model), "--streams", "1", "3", "--prompt-tokens", "40"]
    words += ["--max-tokens", "6", "--threads", "1", "--num-blocks", "64", "--json", str(file)]
    assert run_cli(*words) == 0
    shown = capsys.readouterr().out
    assert "model tiny" in shown and "num_hidden_layers 2" in shown
    found = json.loads(file.read_text())
    assert found["conditions"]["settings"] == {"threads": 1, "num_blocks": 64}
    assert [result["workload"]["streams"] for result in found["results"]] == [1, 3]
    for result in found["results"]:
        assert len(result["decode"]) == 3 and min(result["decode"] + result["prefill"]) > 0


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--engine", "--url", "http://x"], "--url asks a server over HTTP"),
        (["--engine", "--no-ignore-eos"], "--no-ignore-eos asks a server"),
        (["--streams", "1"], "--streams is for an engine alone; add --engine"),
        (["--kv-cache-gb", "1"], "--kv-cache-gb is for an engine alone"),
        (["--no-enforce-eager"], "--enforce-eager is for an engine alone"),
    ],
)
def test_flags_of_the_other_way_are_refused(words, answer, capsys):
    assert run_cli(*words) == 78
    assert answer in capsys.readouterr().err


def test_a_count_must_be_positive(capsys):
    with pytest.raises(SystemExit):
        run_cli("--engine", "--streams", "0")
    assert "'0' is no positive whole number" in capsys.readouterr().err


class Completions(BaseHTTPRequestHandler):
    """Answers with three pieces of text and says that there were four tokens."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, body["max_tokens"], len(body["prompt"])) == ("/v1/completions", 4, 128)
        self.send_response(200)
        self.end_headers()
        for _ in range(3):
            self.wfile.write(b'data: {"choices": [{"text": "x"}]}\n\n')
        self.wfile.write(b'data: {"choices": [], "usage": {"completion_tokens": 4}}\n\n')
        if body["model"] == "whole":
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *words: object) -> None:
        pass


@pytest.mark.parametrize(("model", "num_failed"), [("whole", 0), ("cut", 3)])
def test_the_command_measures_a_server(model, num_failed, tmp_path, capsys):
    with ThreadingHTTPServer(("127.0.0.1", 0), Completions) as server:
        threading.Thread(target=server.serve_forever).start()
        url, file = f"http://127.0.0.1:{server.server_port}", tmp_path / "out.json"
        words = ["--url", url, "--model", model, "--max-tokens", "4", "--json", str(file)]
        code = run_cli(*words, "--concurrency", "2", "--requests", "3")
        server.shutdown()
    assert code == bool(num_failed)
    (result,) = json.loads(file.read_text())["results"]
    assert (result["num_requests"], result["num_failed"]) == (3, num_failed)
    assert result["output_tokens"] == 4 * (3 - num_failed)
    assert ("ended without a finish_reason" in capsys.readouterr().out) is bool(num_failed)


def test_flags_left_out_leave_the_defaults_of_the_load():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert vars(parser.parse_args([])) == {"engine": False}


def test_the_check_on_a_gpu_is_rehearsed_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert check.main(["--rehearse", "--part", "speed", "--models", "Qwen3-0.6B"]) == 0
    records = [json.loads(line) for line in (tmp_path / "check.jsonl").read_text().splitlines()]
    points = [record for record in records if "bound" in record]
    assert [(r["workload"]["streams"], r["context"]) for r in points] == [(1, 0), (3, 40)]
    assert all(record["bound"] > 0 and min(record["decode"]) > 0 for record in points)
    shown = capsys.readouterr().out
    for label in check.COSTS:
        assert f"Qwen3-0.6B 3 × 40, {label}:" in shown


def test_the_check_of_a_hybrid_model_is_rehearsed_too(monkeypatch, capsys):
    monkeypatch.setattr(check, "run_tests", lambda *_: None)
    assert check.main(["--rehearse", "--part", "hybrid", "--models", "Qwen3-0.6B"]) == 0
    shown = capsys.readouterr().out
    for label in check.HYBRID_SHORTCUTS:
        assert f"hybrid: {label}: 12 of 12 answers as with the defaults" in shown


def test_the_check_names_tests_that_exist():
    root = Path(check.__file__).parents[2]
    for path in (
        *check.KERNEL_TESTS,
        *check.ENGINE_TESTS,
        *check.HYBRID_TESTS,
        *check.GPU_TESTS,
    ):
        assert (root / path).exists(), path


def test_a_missed_goal_fails_a_check_that_is_real(capsys):
    result = bench.EngineBenchResult(Workload(64, 1024), (1.0,), (36.0,), (7999.0,), gpu_busy=0.98)
    report = check.Report()
    check.add_point(report, "Qwen3-8B", 1024, result, 11_000.0, judged=False)
    assert report.num_failures == 0
    check.add_point(report, "Qwen3-8B", 1024, result, 11_000.0, judged=True)
    assert report.num_failures == 1
    assert "tokens/s ( 73%)" in (shown := capsys.readouterr().out) and "MISSED: decode" in shown


@pytest.mark.parametrize(("grown", "code"), [(0, 0), (2 << 20, 1)])
def test_memory_that_grows_under_random_load_is_a_failure(grown, code, monkeypatch, capsys):
    held = iter([5 << 20, (5 << 20) + grown])
    monkeypatch.setattr(check, "held_bytes", lambda scale: next(held))
    monkeypatch.setattr(check, "rehearsal", lambda: SMALL)
    assert check.main(["--rehearse", "--part", "leak", "--models", "Qwen3-0.6B"]) == code
    assert f"{grown:,} bytes more after the second half" in capsys.readouterr().out


SMALL = check.Scale(
    "cpu",
    "float32",
    {"Qwen3-0.6B": models.tiny(models.QWEN3["Qwen3-0.6B"])},
    steps=24,
    settings={"num_blocks": 128, "block_size": 16, "threads": 1, "max_model_len": 256},
)

# What transformers serve says of a request: no [DONE] at the end, usage with the finish_reason.
SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == sys.argv[2] and "ignore_eos" not in body
        assert len(body["messages"][0]["content"].split()) == 30
        self.send_response(200)
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self.say({"choices": [{"delta": {"content": " w"}}]})
        usage = {"completion_tokens": body["max_tokens"]}
        self.say({"choices": [{"delta": {}, "finish_reason": "length"}], "usage": usage})
    def say(self, event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
    def log_message(self, *words):
        pass

assert sys.argv[1] == "serve" and "--continuous-batching" in sys.argv
port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_transformers_serve_is_started_measured_and_ended(tmp_path):
    server = (sys.executable, "-c", SERVER)
    results = list(transformers_serve.measure(tmp_path, "cpu", (1, 3), 30, 5, command=server))
    assert [(r.concurrency, r.num_failed, r.output_tokens) for r in results] == [
        (1, 0, 5),
        (3, 0, 15),
    ]


def test_a_server_that_does_not_start_is_named_with_its_log(tmp_path):
    server = (sys.executable, "-c", "raise SystemExit('no such model')")
    with pytest.raises(RuntimeError, match="no such model"):
        list(transformers_serve.measure(tmp_path, "cpu", (1,), 30, 5, command=server))
