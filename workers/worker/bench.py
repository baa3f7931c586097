"""Measure an engine alone, in this process: prefill, first token and decode of random prompts.

Knows prompts, steps and clocks. Refuses to know where settings come from and how results are shown.
Each round asks for its prompts twice: for one token each, which times prefill and the first token;
then, as the prefix cache knows them, for whole answers, of which only the steps count that decode
all of them. Checked on CPUs; no GPU has run `_gpu_busy` yet.
"""

import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.folder import model_name
from workers.config import EngineConfig
from workers.engine_core import EngineCore, Key
from workers.errors import ConfigError, WorkerError
from workers.wire.protocol import Generate, ModelCard, SamplingParams
from workers.worker.openmp import prepare_openmp

Prompts = Sequence[tuple[int, ...]]

WARM_UP_TOKENS = PROFILED_TOKENS = 32
_DIMENSIONS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class Workload:
    """`streams` requests at once, of random prompts that share no prefix. Nothing stops them."""

    streams: int
    prompt_tokens: int = 1024
    max_tokens: int = 128
    temperature: float = 0.0
    rounds: int = 3

    def params(self, max_tokens: int) -> SamplingParams:
        return SamplingParams(max_tokens=max_tokens, temperature=self.temperature, ignore_eos=True)


@dataclass(frozen=True)
class EngineBenchResult:
    """Tokens per second by round, milliseconds by stream and round. On CUDA also the share of time
    in which the GPU ran something while decoding (measured with a profiler, which slows the host:
    rather too low), and the most bytes torch has held since the start, loading included.
    """

    workload: Workload
    prefill: tuple[float, ...]
    ttft_ms: tuple[float, ...]
    decode: tuple[float, ...]
    gpu_busy: float | None = None
    peak_bytes: int | None = None


class Flight:
    """Requests an idle engine is asked for at once, and what has come of them."""

    def __init__(self, engine: EngineCore, prompts: Prompts, params: SamplingParams) -> None:
        self._engine, self.size = engine, len(prompts)
        self.num_tokens = self.num_finished = 0
        self.ttft: dict[Key, float] = {}  # seconds
        self._started = time.perf_counter()
        common: dict[str, Any] = {"request_id": "bench", "params": params, "queue_timeout": 86_400}
        for number, ids in enumerate(prompts):
            engine.add((0, number), Generate(wid=number, prompt_ids=ids, **common))

    def step(self) -> None:
        """Let the engine step, and count what it says."""
        output = self._engine.step()
        if output.failed:
            raise WorkerError(f"the engine failed a request: {output.failed[0][1].reason}")
        now = time.perf_counter() - self._started
        for key, chunk in output.chunks:
            self.ttft.setdefault(key, now)
            self.num_tokens += len(chunk.token_ids)
        self.num_finished += len(output.finished)

    def finish(self) -> float:
        """Let every request end, and return the seconds since all were asked for."""
        while self.num_finished < self.size:
            self.step()
        seconds = time.perf_counter() - self._started
        while self._engine.has_work:  # a step launched before the end was known
            self.step()
        return seconds


def load(config: EngineConfig, progress: Callable[[str, float], None]) -> EngineCore:
    """Return an engine over the model `config` names, its threads as an engine process has them."""
    prepare_openmp(config.threads)
    from workers.engine.engine import Engine

    return Engine(config, progress)


def conditions(config: EngineConfig, card: ModelCard) -> dict[str, Any]:
    """Return what must be known to read the numbers; of the settings, those that were set."""
    import torch

    model = Checkpoint.of(config).config.values
    defaults = asdict(EngineConfig(config.model))
    return {
        "model": model_name(card.model_dir),
        **{name: model[name] for name in _DIMENSIONS},
        "dtype": card.dtype,
        "device": torch.cuda.get_device_name() if card.device.startswith("cuda") else _processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "num_blocks": card.num_blocks,
        "settings": {k: v for k, v in asdict(config).items() if v != defaults[k]},
    }


def measure(engine: EngineCore, workload: Workload) -> EngineBenchResult:
    """Measure an idle engine; raise ConfigError if the workload does not fit it."""
    _refuse_unfit(engine.card, workload)
    _warm_up(engine, workload)
    prefills, decodes, waits = [], [], []
    for number in range(workload.rounds):
        prompts = make_prompts(engine.card, workload, seed=number)
        flight = Flight(engine, prompts, workload.params(1))
        prefills.append(workload.streams * workload.prompt_tokens / flight.finish())
        waits += [1000 * seconds for seconds in flight.ttft.values()]
        flight = Flight(engine, prompts, workload.params(workload.max_tokens))
        decodes.append(_decode(flight, nullcontext()))
    found = EngineBenchResult(workload, tuple(prefills), tuple(waits), tuple(decodes))
    return _on_gpu(found, engine, prompts) if engine.card.device.startswith("cuda") else found


def make_prompts(card: ModelCard, workload: Workload, seed: int) -> Prompts:
    """Return random prompts; another seed gives others."""
    chosen = random.Random(f"{seed} {workload.streams} {workload.prompt_tokens}")
    ids, length = range(card.vocab_size), workload.prompt_tokens
    return [tuple(chosen.choices(ids, k=length)) for _ in range(workload.streams)]


def busy_share(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the part of the time, from the first start to the last end, that intervals cover."""
    if not (ordered := sorted(intervals)):
        return 0.0
    covered, until = 0.0, ordered[0][0]
    for start, end in ordered:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered / (until - ordered[0][0])


def _warm_up(engine: EngineCore, workload: Workload) -> None:
    """Let kernels compile and graphs be captured at as many rows; one prompt is whole."""
    whole, params = make_prompts(engine.card, workload, -1), workload.params(4)
    Flight(engine, [ids[:WARM_UP_TOKENS] for ids in whole], params).finish()
    Flight(engine, whole[-1:], params).finish()


def _decode(flight: Flight, profiler: AbstractContextManager[Any]) -> float:
    """Return tokens per second from when the last stream has begun until the first one ends."""
    while len(flight.ttft) < flight.size:
        flight.step()
    if flight.num_finished:
        raise ConfigError("a stream ended before the last began; raise --max-tokens")
    with profiler:
        before, started = flight.num_tokens, time.perf_counter()
        while not flight.num_finished:
            flight.step()
        rate = (flight.num_tokens - before) / (time.perf_counter() - started)
    flight.finish()
    return rate


def _on_gpu(found: EngineBenchResult, engine: EngineCore, prompts: Prompts) -> EngineBenchResult:
    import torch

    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    params = found.workload.params(min(found.workload.max_tokens, PROFILED_TOKENS))
    _decode(Flight(engine, prompts, params), profiler)
    ran = (event for event in profiler.events() if event.device_type.name == "CUDA")
    busy = busy_share((event.time_range.start, event.time_range.end) for event in ran)
    return replace(found, gpu_busy=busy, peak_bytes=torch.cuda.max_memory_allocated())


def _refuse_unfit(card: ModelCard, workload: Workload) -> None:
    if card.task != "generate":
        raise ConfigError(f"the load is of answers, but the model is served for {card.task} only")
    length = workload.prompt_tokens + workload.max_tokens
    blocks = workload.streams * -(-length // card.block_size)
    room = int(0.98 * card.num_blocks)  # the scheduler keeps a percent free
    for name, needed, limit in (
        ("--max-num-seqs or --max-num-batched-tokens", workload.streams, card.max_num_seqs),
        ("--max-model-len", length, card.max_model_len),
        ("--num-blocks", blocks, room),
    ):
        if needed > limit:
            raise ConfigError(f"the load needs {needed}, but {name} leaves {limit}")


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1] if found else "CPU"
