"""`python -m tests.gpu.check`: everything a machine with a GPU has to say, in one call or in parts.

kernels   The kernels' tests, compiled, each dtype within its own error; attention's own roofline.
engine    The engine's tests on CUDA in float32, with the kernels and with torch's attention, those
          of tests/gpu, and equal tokens with each of the engine's shortcuts turned round.
hybrid    The tests of hybrid models on CUDA, and equal tokens of a small one by graphs, by single
          kernels, and by torch.
speed     Engines alone on random bfloat16 weights of Qwen3's dimensions: points of the roofline,
          goals, and what leaving out a shortcut or asking for determinism costs.
peers     `transformers serve` with continuous batching over the same weights.
leak      10,000 steps of random load: the memory torch holds on the GPU stays the same.

A part is meant to stay within ten minutes; for speed name one or two models (`--models`). Each part
and model has a process of its own, so that one that dies takes nothing with it. Results are also
appended as lines of JSON to $OUT/check.jsonl where OUT is set. `--rehearse` does the same on a CPU
with tiny models, tests only collected. Needs torch with CUDA, triton, transformers, pytest,
hypothesis, msgspec, psutil, requests; peers also fastapi, uvicorn, openai, pydantic. Only rehearsed
so far: no GPU has run it.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch
from transformers import PretrainedConfig

from tests.gpu import attention_roofline, models, transformers_serve
from tests.gpu.random_load import RandomLoad
from tests.gpu.roofline import Ceilings, Dimensions, decode_bound, measure_ceilings, prefill_bound
from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.errors import ConfigError
from workers.wire.protocol import Generate, SamplingParams
from workers.worker import bench
from workers.worker.bench import Workload

KERNEL_TESTS = ("tests/kernels",)
ENGINE_TESTS = (
    "tests/engine/test_parity.py",
    "tests/engine/test_batching.py",
    "tests/engine/test_steps.py",
    "tests/engine/test_resume.py",
    "tests/model/test_batch_invariant.py",
    "tests/model/test_experts.py",
    "tests/model/test_awq_gptq.py",
    "tests/engine/test_sampler.py",
    "tests/engine/test_top_p_sampling_gpu.py",
)
HYBRID_TESTS = (
    "tests/engine/test_hybrid.py",
    "tests/engine/test_hybrid_prefixes.py",
    "tests/engine/test_hybrid_by_kernels.py",
    "tests/engine/test_images.py",
    "tests/engine/test_images_by_kernels.py",
)
GPU_TESTS = ("tests/gpu",)
PEER_MODELS = ("Qwen3-0.6B", "Qwen3-8B")
# Settings that must change no token.
SHORTCUTS = {
    "eager": {"enforce_eager": True},
    "no overlap": {"async_scheduling": "off"},
    "speculation": {"num_speculative_tokens": 4},
    "no prefix cache": {"enable_prefix_caching": False},
}
HYBRID_SHORTCUTS = {
    "eager": {"enforce_eager": True},
    "no overlap": {"async_scheduling": "off"},
    "by torch": {"attention_backend": "torch"},
    "by torch, speculation": {"num_speculative_tokens": 4},
}
# Settings whose cost is measured, on PEER_MODELS.
COSTS = {
    "eager": {"enforce_eager": True},
    "no overlap": {"async_scheduling": "off"},
    "deterministic": {"deterministic": True},
}
# Decoded tokens per second, by model, streams and prompt tokens.
GOALS = {
    ("Qwen3-0.6B", 64, 1024): 20_000,
    ("Qwen3-8B", 1, 1024): 200,
    ("Qwen3-8B", 64, 1024): 8_000,
    ("Qwen3-32B", 1, 1024): 54,
    ("Qwen3-32B", 64, 1024): 2_600,
    ("Qwen3-30B-A3B", 1, 1024): 250,
    ("Qwen3-30B-A3B", 64, 1024): 2_600,
}
TTFT_GOAL_MS = {("Qwen3-8B", 1, 1024): 35}
BUSY_GOAL = {("Qwen3-8B", 64, 1024): 0.97}
SHORTEST_PROMPT = 16  # where the roofline's context is 0
MANY_TOKENS = 100_000  # of prompts: measured once, not three times
LEAKED_BYTES = 1 << 20


@dataclass(frozen=True)
class Scale:
    """What is real on a GPU and tiny in a rehearsal."""

    device: str = "cuda"
    dtype: str = "bfloat16"
    models: dict[str, Dimensions] = field(default_factory=lambda: models.QWEN3)
    hybrid: PretrainedConfig = field(default_factory=lambda: models.hybrid(4, 4, 128))
    points: tuple[tuple[int, int], ...] = ((1, 0), (1, 1024), (64, 1024), (64, 4096), (256, 1024))
    cost_points: tuple[tuple[int, int], ...] = ((1, 1024), (64, 1024))
    max_tokens: int = 128
    peer_streams: tuple[int, ...] = (1, 8, 64)
    peer_prompt: int = 1024
    steps: int = 10_000
    settings: dict[str, int] = field(default_factory=dict)

    @property
    def is_real(self) -> bool:
        return self.device == "cuda"


def rehearsal() -> Scale:
    tiny = {name: models.tiny(dimensions) for name, dimensions in models.QWEN3.items()}
    settings = {"num_blocks": 512, "block_size": 16, "threads": 1}
    points = ((1, 0), (3, 40))
    return Scale(
        device="cpu",
        dtype="float32",
        models=tiny,
        hybrid=models.hybrid(2, 1, 16),
        points=points,
        cost_points=points[1:],
        max_tokens=12,
        peer_streams=(1, 2),
        peer_prompt=24,
        steps=150,
        settings=settings,
    )


class Report:
    """Says every finding at once, in print and as a line of a file; counts what went wrong."""

    def __init__(self) -> None:
        self.num_failures = 0
        folder = os.environ.get("OUT")
        self._file = Path(folder) / "check.jsonl" if folder else None

    def add(self, part: str, text: str, *, is_good: bool = True, **facts: object) -> None:
        self.num_failures += not is_good
        print(f"{part}: {text}{'' if is_good else '  ← FAILED'}", flush=True)
        if self._file is not None:
            record = {"part": part, "is_good": is_good, "text": text} | facts
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument(
        "--models", nargs="+", default=list(models.QWEN3), choices=list(models.QWEN3)
    )
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny models")
    parsed = parser.parse_args(arguments)
    if not parsed.rehearse and not torch.cuda.is_available():
        print("no CUDA device: nothing checked; --rehearse runs on a CPU")
        return 1
    scale, report = rehearsal() if parsed.rehearse else Scale(), Report()
    device = torch.cuda.get_device_name() if scale.is_real else f"rehearsal on {platform.machine()}"
    report.add("machine", f"{device}, torch {torch.__version__}")
    jobs = [(part, name) for part in parsed.part for name in models_of(part, parsed.models)]
    if len(jobs) == 1:
        PARTS[jobs[0][0]](scale, jobs[0][1], report)
    else:
        for part, name in jobs:
            words = ["--part", part, "--models", name] + ["--rehearse"] * parsed.rehearse
            code = subprocess.run([sys.executable, "-m", "tests.gpu.check", *words]).returncode
            report.add(part, f"{name}: exit code {code}", is_good=code == 0)
    return min(report.num_failures, 1)


def models_of(part: str, names: Sequence[str]) -> Sequence[str]:
    """Return the models a part is run with; where none matters, the first."""
    if part == "speed":
        return names
    if part == "peers":
        return [name for name in names if name in PEER_MODELS]
    return names[:1]


def check_kernels(scale: Scale, name: str, report: Report) -> None:
    run_tests("kernels", KERNEL_TESTS, scale, report)
    if scale.is_real:
        attention_roofline.report()


def check_engine(scale: Scale, name: str, report: Report) -> None:
    run_tests("engine", ENGINE_TESTS, scale, report)
    run_tests("engine", ENGINE_TESTS[:1], scale, report, attention="torch")
    run_tests("engine", GPU_TESTS, scale, report)
    dimensions = models.tiny(models.QWEN3["Qwen3-8B"])
    compare_answers("engine", scale, dimensions, SHORTCUTS, report)


def check_hybrid(scale: Scale, name: str, report: Report) -> None:
    run_tests("hybrid", HYBRID_TESTS, scale, report)
    compare_answers("hybrid", scale, scale.hybrid, HYBRID_SHORTCUTS, report)


def compare_answers(
    part: str,
    scale: Scale,
    model: Dimensions | PretrainedConfig,
    shortcuts: dict[str, dict[str, object]],
    report: Report,
) -> None:
    """Say for each of the shortcuts whether it changes a token."""
    expected = answers(scale, model, {})
    for name, settings in shortcuts.items():
        found = answers(scale, model, settings)
        num_equal = sum(ours == theirs for ours, theirs in zip(found, expected, strict=True))
        text = f"{name}: {num_equal} of {len(expected)} answers as with the defaults"
        report.add(part, text, is_good=found == expected)


def run_tests(
    part: str, paths: Sequence[str], scale: Scale, report: Report, attention: str = "auto"
) -> None:
    """Run tests in a process of their own; a rehearsal only collects them."""
    environ = os.environ | {
        "QWENAPI_TEST_DEVICE": scale.device,
        "QWENAPI_TEST_ATTENTION": attention,
        "NVIDIA_TF32_OVERRIDE": "0",
    }
    command = [sys.executable, "-m", "pytest", "-q", *paths]
    command += [] if scale.is_real else ["--collect-only"]
    code = subprocess.run(command, env=environ).returncode
    text = f"{' '.join(paths)}, attention {attention}: exit code {code}"
    # 5: none was collected, as those that need a GPU are not in a rehearsal.
    report.add(part, text, is_good=code == 0 or (code == 5 and not scale.is_real))


def answers(
    scale: Scale, model: Dimensions | PretrainedConfig, settings: dict[str, object]
) -> list[list[int]]:
    """Return greedy answers of a tiny float32 model to prompts that repeat themselves."""
    with models.engine_over(
        "tiny", model, "float32", scale.device, **scale.settings | settings
    ) as engine:
        prompts = [
            prompt[: 8 + number] * 4
            for number, prompt in enumerate(bench.make_prompts(engine.card, Workload(12, 32), 0))
        ]
        found: dict[object, list[int]] = {}
        params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
        for wid, ids in enumerate(prompts):
            engine.add(
                (0, wid), Generate(wid=wid, request_id="check", prompt_ids=ids, params=params)
            )
        while engine.has_work:
            for key, chunk in engine.step().chunks:
                found.setdefault(key, []).extend(chunk.token_ids)
        return [found[0, wid] for wid in range(len(prompts))]


def check_speed(scale: Scale, name: str, report: Report) -> None:
    ceilings = measure_ceilings(scale.device)
    terabytes, teraflops = ceilings.bandwidth / 1e12, ceilings.products / 1e12
    text = f"a copy moves {terabytes:.2f} TB/s, a product {teraflops:.1f} TFLOP/s"
    report.add("speed", text, **ceilings._asdict())
    usual = time_model(scale, name, scale.points, ceilings, report)
    for label, settings in COSTS.items() if name in PEER_MODELS else ():
        time_cost(scale, name, label, settings, usual, report)


def time_model(
    scale: Scale,
    name: str,
    points: Sequence[tuple[int, int]],
    ceilings: Ceilings,
    report: Report,
) -> dict[tuple[int, int], float]:
    """Say what every point gives beside its bound; return decoded tokens per second."""
    dimensions, rates = scale.models[name], {}
    with models.engine_over(
        name, dimensions, scale.dtype, scale.device, **scale.settings
    ) as engine:
        card, prefill = engine.card, prefill_bound(dimensions, ceilings)
        text = (
            f"{name}: {card.dtype}, {card.num_blocks} blocks of {card.block_size} tokens, at most"
        )
        text += (
            f" {card.max_num_batched_tokens} tokens a step, prefill bound {prefill:,.0f} tokens/s"
        )
        report.add("speed", text, model=name, prefill_bound=prefill)
        for streams, context in points:
            if (result := time_point(engine, scale, streams, context, name, report)) is None:
                continue
            rates[streams, context] = statistics.median(result.decode)
            attended = result.workload.prompt_tokens + scale.max_tokens / 2
            bound = decode_bound(dimensions, streams, attended, ceilings)
            add_point(report, name, context, result, bound, judged=scale.is_real)
    return rates


def time_point(
    engine: Engine, scale: Scale, streams: int, context: int, name: str, report: Report
) -> bench.EngineBenchResult | None:
    """Measure one point; say why if it does not fit into the device's memory."""
    rounds = 1 if streams * context > MANY_TOKENS else 3
    prompt_tokens = max(context, SHORTEST_PROMPT)
    try:
        return bench.measure(
            engine, Workload(streams, prompt_tokens, scale.max_tokens, rounds=rounds)
        )
    except ConfigError as error:
        report.add("speed", f"{name} {streams} × {context}: skipped, {error}")
        return None


def add_point(
    report: Report,
    name: str,
    context: int,
    result: bench.EngineBenchResult,
    bound: float,
    *,
    judged: bool,
) -> None:
    key = (name, result.workload.streams, context)
    rate, wait = statistics.median(result.decode), statistics.median(result.ttft_ms)
    busy = 0.0 if result.gpu_busy is None else result.gpu_busy
    goals = {
        "decode": (rate, GOALS.get(key), rate >= GOALS.get(key, 0)),
        "first token": (wait, TTFT_GOAL_MS.get(key), wait <= TTFT_GOAL_MS.get(key, wait)),
        "GPU busy": (busy, BUSY_GOAL.get(key), busy >= BUSY_GOAL.get(key, 0)),
    }
    wanted = [f"goal {what} {goal:g}" for what, (_, goal, _) in goals.items() if goal]
    missed = [what for what, (_, goal, is_met) in goals.items() if goal and not is_met]
    text = (
        f"{name} {key[1]:3d} × {context:4d}: decode {rate:9,.1f} of {bound:9,.1f} tokens/s"
        f" ({rate / bound:4.0%}), prefill {statistics.median(result.prefill):9,.0f},"
        f" first token {wait:7.1f} ms, GPU busy {busy:5.1%}"
    )
    text += f"; {', '.join(wanted)}" * bool(wanted) + f"; MISSED: {', '.join(missed)}" * bool(
        missed
    )
    facts = asdict(result) | {"model": name, "context": context, "bound": bound}
    report.add("speed", text, is_good=not (judged and missed), **facts)


def time_cost(
    scale: Scale,
    name: str,
    label: str,
    settings: dict[str, object],
    usual: dict[tuple[int, int], float],
    report: Report,
) -> None:
    """Say how much slower decoding is with other settings than with the defaults."""
    try:
        with models.engine_over(
            name, scale.models[name], scale.dtype, scale.device, **scale.settings | settings
        ) as engine:
            for point in scale.cost_points:
                result = time_point(engine, scale, *point, name, report)
                if result is not None and point in usual:
                    rate = statistics.median(result.decode)
                    text = f"{name} {point[0]} × {point[1]}, {label}: {rate:,.1f} tokens/s"
                    text += f", {rate / usual[point]:.0%} of the defaults'"
                    report.add("speed", text, model=name, settings=settings, **asdict(result))
    except ConfigError as error:
        report.add("speed", f"{name}, {label}: skipped, {error}")


def check_peers(scale: Scale, name: str, report: Report) -> None:
    """Compare whole bursts: all streams asked for at once, prompts included, greedy."""
    with tempfile.TemporaryDirectory() as folder:
        directory = models.write(Path(folder) / name, scale.models[name])
        models.write_weights(directory, scale.models[name], scale.dtype, scale.device)
        for streams, rate in burst_rates(scale, directory).items():
            text = f"{name}, {streams} streams: ours, without HTTP: {rate:,.1f} tokens/s"
            report.add("peers", text, model=name, streams=streams, ours=rate)
        models.free_memory(scale.device)
        if missing := transformers_serve.missing():
            text = f"{name}: transformers serve skipped, it lacks {', '.join(missing)}"
            report.add("peers", text)
            return
        for result in transformers_serve.measure(
            directory, scale.device, scale.peer_streams, scale.peer_prompt, scale.max_tokens
        ):
            text = f"{name}, {result.concurrency} streams: transformers serve:"
            text += f" {result.tokens_per_second:,.1f} tokens/s, {result.num_failed} failed"
            report.add("peers", text, model=name, **asdict(result))


def burst_rates(scale: Scale, directory: Path) -> dict[int, float]:
    """Return output tokens per second of an engine over a checkpoint, by number of streams."""
    config = EngineConfig(
        model=str(directory), dtype=scale.dtype, device=scale.device, **scale.settings
    )
    engine, rates = bench.load(config, lambda *_: None), {}
    for streams in scale.peer_streams:
        workload = Workload(streams, scale.peer_prompt, scale.max_tokens)
        for seed in (0, 1):  # the first one warms up
            prompts = bench.make_prompts(engine.card, workload, seed)
            flight = bench.Flight(engine, prompts, workload.params(scale.max_tokens))
            rates[streams] = streams * scale.max_tokens / flight.finish()
    return rates


def check_leak(scale: Scale, name: str, report: Report) -> None:
    """Load an engine at random; when it is idle, it holds as much as when it was idle before."""
    held = []
    with models.engine_over(
        name, scale.models[name], scale.dtype, scale.device, **scale.settings
    ) as engine:
        load = RandomLoad(engine)
        for steps in (scale.steps // 2, scale.steps - scale.steps // 2):
            load.run(steps)
            engine.check_integrity()
            held.append(held_bytes(scale))
            resident = psutil.Process().memory_info().rss
            text = f"{name}: {held[-1] >> 20:,} MiB on the GPU, {resident >> 20:,} MiB resident"
            report.add("leak", text, allocated=held[-1], resident=resident)
    grown = held[1] - held[0]
    text = f"{name}: {load.num_added} requests, {grown:,} bytes more after the second half"
    report.add("leak", text, is_good=grown <= LEAKED_BYTES, grown=grown)


def held_bytes(scale: Scale) -> int:
    """Return what torch holds on the GPU."""
    gc.collect()
    return torch.cuda.memory_allocated() if scale.is_real else 0


PARTS = {
    "kernels": check_kernels,
    "engine": check_engine,
    "hybrid": check_hybrid,
    "speed": check_speed,
    "peers": check_peers,
    "leak": check_leak,
}


if __name__ == "__main__":
    sys.exit(main())
