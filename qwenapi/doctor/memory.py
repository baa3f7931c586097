"""Checks of memory: whether weights, cache and workspace fit, and the tokens that leaves.

Follows workers/model/capacity.py, which decides once the weights are in memory; a test compares
the two. The workspace is an estimate: what an engine takes beside weights and cache.
"""

import math
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pynvml

from qwenapi.doctor.check import GIB, Check, failure, gib, ok, warning
from qwenapi.settings.table import Settings
from workers.checkpoint.architectures import CLASSIFIER, EMBEDDING, HEAD
from workers.checkpoint.model_config import ModelConfig
from workers.checkpoint.packings import Multiplier
from workers.checkpoint.rounding import FOR_CPUS, ROUNDED_BITS, num_rounded
from workers.checkpoint.shard_plan import ShardPlan
from workers.checkpoint.speculative_config import SpeculativeConfig
from workers.checkpoint.state_slots import StateSlots
from workers.checkpoint.weights import Weights
from workers.errors import ConfigError
from workers.memory import machine_memory

CPU_CACHE_FRACTION = 0.25
CPU_CACHE_BYTES = 4 * GIB
# Above this share of one GPU a model is spread over all.
SPREAD_FROM = 0.8
# Interpreter and libraries of an engine process; on CUDA the driver's context besides.
CPU_BASE_BYTES = GIB // 2
CUDA_BASE_BYTES = GIB
LOGITS_COPIES = 3
# Of a hybrid's states, so that half of the cache has one and the trash slot.
_FEWEST_SLOTS = 4
USUAL_STREAM = 2048
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Room:
    """Memory that engines load into, or their ranks: of the machine, or of one or several GPUs."""

    name: str
    is_gpu: bool
    total: int
    free: int
    num_engines: int = 1


@dataclass(frozen=True)
class MemoryPlan:
    """What one engine, or each rank of one, would take of a room, in bytes and tokens."""

    weights: int
    workspace: int
    block_bytes: int
    block_size: int
    num_blocks: int
    wanted_len: int
    num_running: int
    state_bytes: int = 0  # of all slots

    @property
    def cache(self) -> int:
        return self.num_blocks * self.block_bytes + self.state_bytes

    @property
    def num_tokens(self) -> int:
        """Return the tokens the cache holds; its first block is never used."""
        return max(0, self.num_blocks - 1) * self.block_size

    @property
    def cache_gb_wanted(self) -> float:
        """Return the GiB of cache that one sequence of the wanted length takes."""
        blocks = -(-self.wanted_len // self.block_size) + 1
        return round((blocks * self.block_bytes + self.state_bytes) / GIB + 0.005, 2)


def find_room(settings: Settings, num_bytes: int, num_ranks: int | None = None) -> Room:
    """Return where engines would run, as `device` says; the machine's memory if there is no GPU.

    Several engines and their ranks, of each `num_ranks` or all, take turns on the GPUs, so of these
    the one that has least for each decides.
    """
    gpus = [] if settings.device == "cpu" or settings.stub else visible_gpus()
    num_engines = settings.data_parallel_size * (num_ranks or settings.tensor_parallel_size)
    if not gpus:
        return replace(machine_room(), num_engines=num_engines)
    if num_engines > 1:
        engines = range(num_engines)
        shared = [
            replace(gpu, num_engines=len(engines[i :: len(gpus)]))
            for i, gpu in enumerate(gpus[:num_engines])
        ]
        return min(shared, key=lambda gpu: gpu.free / gpu.num_engines)
    if len(gpus) == 1 or num_bytes <= SPREAD_FROM * gpus[0].free:
        return gpus[0]
    # Every layer has as many blocks, so the fullest GPU decides.
    smallest = min(gpus, key=lambda gpu: gpu.free)
    count = len(gpus)
    return Room(f"{count} × {smallest.name}", True, smallest.total * count, smallest.free * count)


def check_memory(
    settings: Settings, weights: Weights, of: ModelConfig, num_local_ranks: int | None = None
) -> Iterator[Check]:
    """Say what fits where; the first failure is the last check."""
    ranks = num_local_ranks or settings.tensor_parallel_size
    room = find_room(settings, _weight_bytes(settings, weights, 2, "kernels"), ranks)
    if settings.device == "cuda" and not room.is_gpu:
        yield failure(
            "memory", "device = 'cuda'", "no GPU is visible", "use --device cpu, or mend the driver"
        )
        return
    num_gpus = len(visible_gpus()) if room.is_gpu else 0
    if room.is_gpu and ranks > num_gpus:
        said = f"tensor_parallel_size = {ranks}"
        yield failure("memory", said, f"{num_gpus} GPUs are visible", "lower it, or show it more")
        return
    plan = make_plan(settings, weights, of, room)
    count = room.num_engines
    needed = count * plan.weights
    kind = "engines" if settings.tensor_parallel_size == 1 else "ranks"
    whose = f" for each of {count} {kind}" if count > 1 else " for each rank" * (kind == "ranks")
    sizes = f"{gib(plan.weights)} of weights{whose}"
    if needed > room.free:
        yield failure(
            "memory",
            f"{sizes} do not fit",
            f"{gib(room.free)} of {room.name} are free",
            _smaller(settings, room),
        )
        return
    yield from _check_length(settings, plan, of)
    if needed + count * (plan.workspace + plan.cache) > room.free:
        yield warning(
            "memory",
            f"{sizes}, {gib(plan.workspace)} of workspace and {gib(plan.cache)} of cache",
            f"together more than the {gib(room.free)} of {room.name} that are free",
            _smaller(settings, room),
        )
        return
    yield ok(
        "memory",
        f"{sizes}, about {gib(plan.workspace)} of workspace and {gib(plan.cache)} of cache"
        f" fit into the {gib(room.free)} of {room.name} that are free",
    )


def make_plan(settings: Settings, weights: Weights, of: ModelConfig, room: Room) -> MemoryPlan:
    """Return what an engine would choose in a room; explicit settings stay as they are."""
    vocab_size = of.vocab_size
    item = ITEM_BYTES[_dtype(settings, room)]
    budget = settings.max_num_batched_tokens or (8192 if room.is_gpu else 512)
    rows = min(settings.max_num_seqs, budget)
    block_size = settings.block_size or (64 if room.is_gpu else 32)
    part, of = _part_of(settings, weights, of)
    num_layers = of.num_attention_layers + weights.has_drafter
    block_bytes = 2 * of.num_key_value_heads * of.head_dim * item * num_layers * block_size
    slot_bytes = of.state_bytes + weights.has_drafter * of.hidden_size * item
    wanted = settings.max_model_len or of.context_length
    speculative = SpeculativeConfig.of(settings.engine_config())
    # Kernels of hybrid models do not go back from drafts; see workers/engine/start.py.
    may_multiply = settings.attention_backend != "torch"
    if room.is_gpu and of.state_bytes and speculative.num_tokens:
        may_multiply = False
    kept_by = _multiplier(room) if may_multiply else None
    weight_bytes = _weight_bytes(settings, weights, item, kept_by)
    is_tied = weights.has_head and not {HEAD, CLASSIFIER} & weights.shapes.keys()
    if is_tied and _lays_out_products(settings, room):
        weight_bytes += math.prod(weights.shapes[EMBEDDING]) * item
    weight_bytes = int(part * weight_bytes)
    if not settings.language_model_only and settings.tensor_parallel_size == 1:
        weight_bytes += sum(math.prod(tensor.shape) for tensor in weights.tower.values()) * item
    workspace = (
        (CUDA_BASE_BYTES if room.is_gpu else CPU_BASE_BYTES)
        + budget * (4 * of.hidden_size + 3 * of.intermediate_size) * item
        + rows * vocab_size * 4 * LOGITS_COPIES
    )
    free = max(0, room.free // room.num_engines - weight_bytes - workspace)
    memory, slots = _cache_bytes(settings, room, free), None
    per_block = block_bytes
    if of.state_bytes:
        with suppress(ConfigError):  # then there is room for blocks neither
            drafts = speculative.num_state_slots(rows)
            fraction = settings.state_memory_fraction
            slots = StateSlots.fit(memory, slot_bytes, rows, drafts, fraction)
            memory -= slots.fixed * slot_bytes
            per_block += int(slots.per_token * block_size * slot_bytes)
        rows = slots.running if slots else 0
    num_blocks = settings.num_blocks or memory // per_block
    if not (settings.num_blocks or settings.kv_cache_gb):
        num_blocks = min(num_blocks, rows * -(-wanted // block_size) + 1)
    num_slots = slots.total(block_size * num_blocks) if slots else _FEWEST_SLOTS
    return MemoryPlan(
        weight_bytes,
        workspace,
        block_bytes,
        block_size,
        num_blocks,
        wanted,
        rows,
        num_slots * slot_bytes,
    )


def _part_of(settings: Settings, weights: Weights, of: ModelConfig) -> tuple[float, ModelConfig]:
    """Return which part of the weights each rank of an engine holds, and of what smaller model."""
    if settings.tensor_parallel_size == 1:
        return 1.0, of
    plan = ShardPlan(of, settings.tensor_parallel_size, 0, settings.enable_expert_parallel)
    return plan.part_of(weights), replace(of, values={**of.values, **plan.fields()})


def _cache_bytes(settings: Settings, room: Room, free: int) -> int:
    """Return the memory that a cache may take of what weights and workspace leave free."""
    if settings.kv_cache_gb:
        return int(settings.kv_cache_gb * GIB)
    if room.is_gpu:
        return max(0, free - int((1 - settings.gpu_memory_utilization) * room.total))
    return int(min(CPU_CACHE_FRACTION * free, CPU_CACHE_BYTES))


def _weight_bytes(
    settings: Settings, weights: Weights, item: int, kept_by: Multiplier | None
) -> int:
    """Return what loaded weights take, about; those of layers may be of fewer bits."""
    bits = ROUNDED_BITS.get(settings.quantization)
    if settings.quantization == "int8" and not _multiplies_int8():
        bits = 8 * item
    if bits and (not weights.packed or settings.quantization in FOR_CPUS):
        rounded = num_rounded(weights)
        return int(rounded * bits / 8) + (weights.num_parameters - rounded) * item
    if kept_by and weights.packed:
        return weights.kept_bytes(item, kept_by)
    return weights.num_parameters * item


def _lays_out_products(settings: Settings, room: Room) -> bool:
    """Return whether linears are held in oneDNN's layout, a head apart from the embeddings then.

    Our own products, for CPUs that workers/model/native/bfloat16.c names, hold such a matrix once.
    """
    flags = _cpu_flags()
    is_own = "avx512_bf16" in flags and "amx_bf16" not in flags and _has_compiler()
    return (
        not room.is_gpu
        and _dtype(settings, room) == "bfloat16"
        and bool({"avx512bw", "bf16"} & flags)
        and not is_own
    )


def _multiplies_int8() -> bool:
    """Return whether weights of 8 bits stay so: on x86 that takes VNNI, else they are unpacked."""
    return platform.machine() != "x86_64" or any("vnni" in flag for flag in _cpu_flags())


def _cpu_flags() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


def _multiplier(room: Room) -> Multiplier | None:
    """Return what multiplies by weights of fewer bits; on a CPU that takes a compiler."""
    if room.is_gpu:
        return "kernels"
    return "native" if _has_compiler() else None


def _has_compiler() -> bool:
    return bool(os.environ.get("CC") or shutil.which("gcc"))


def visible_gpus() -> list[Room]:
    """Return the GPUs that CUDA would show, as their driver reports them; none without a driver."""
    try:
        with _driver():
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())
            ]
            return [_gpu(handles[i]) for i in _visible_indexes(handles)]
    except pynvml.NVMLError:
        return []


def machine_room() -> Room:
    """Return the machine's memory, or that of the control groups this process is in."""
    return Room("memory", False, *machine_memory())


def _check_length(settings: Settings, plan: MemoryPlan, of: ModelConfig) -> Iterator[Check]:
    if settings.max_model_len > of.context_length:
        yield failure(
            "context",
            f"max_model_len = {settings.max_model_len}",
            f"the model ends at {of.context_length}",
            f"lower it to {of.context_length}, or stretch its positions:"
            f" {_stretching(settings.max_model_len, of)}",
        )
    elif plan.num_tokens <= 0 or settings.max_model_len > plan.num_tokens:
        yield failure(
            "context",
            f"{plan.wanted_len} tokens in one sequence",
            f"the cache that fits holds {plan.num_tokens}",
            f"set --kv-cache-gb {plan.cache_gb_wanted:g} if there is room for it, or lower"
            " --max-model-len",
        )
    elif plan.num_tokens < plan.wanted_len:
        yield warning(
            "context",
            f"sequences end at {plan.num_tokens} tokens, not at the model's {plan.wanted_len}",
            f"the cache takes {gib(plan.cache)}",
            f"set --kv-cache-gb {plan.cache_gb_wanted:g} for the model's whole length",
        )
    else:
        streams = max(1, plan.num_tokens // min(USUAL_STREAM, plan.wanted_len))
        yield ok(
            "context",
            f"the cache holds {plan.num_tokens} tokens: {plan.num_tokens // plan.wanted_len}"
            f" sequences of {plan.wanted_len}, or {streams} of"
            f" {min(USUAL_STREAM, plan.wanted_len)}; {plan.num_running} run at once",
        )


def _stretching(wanted: int, of: ModelConfig) -> str:
    """Return the flag by which sequences of the wanted length fit, as Qwen's cards write it."""
    original = of.rope.original_length
    factor = float(-(-wanted // original))
    return (
        f'--rope-scaling \'{{"rope_type": "yarn", "factor": {factor},'
        f' "original_max_position_embeddings": {original}}}\''
    )


def _dtype(settings: Settings, room: Room) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    has_units = "avx512_bf16" in _cpu_flags()
    return "bfloat16" if room.is_gpu or has_units else "float32"


def _smaller(settings: Settings, room: Room) -> str:
    """Return what takes less memory, the setting that helps most first."""
    if settings.data_parallel_size > 1:
        return "lower --data-parallel-size"
    if ITEM_BYTES[_dtype(settings, room)] > 2:
        return "use --dtype bfloat16, which takes half, or a smaller model"
    if settings.kv_cache_gb or settings.num_blocks:
        return "lower --kv-cache-gb or --num-blocks, or choose a smaller model"
    return "free memory, or choose a smaller model"


@contextmanager
def _driver() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: object) -> Room:
    memory, name = pynvml.nvmlDeviceGetMemoryInfo(handle), pynvml.nvmlDeviceGetName(handle)
    return Room(str(name), True, memory.total, memory.free)


def _visible_indexes(handles: list[object]) -> list[int]:
    """Return what CUDA_VISIBLE_DEVICES leaves: numbers or UUIDs, up to the first unknown one."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(range(len(handles)))
    uuids = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    indexes = []
    for word in (part.strip() for part in chosen.split(",")):
        by_uuid = [i for i, uuid in enumerate(uuids) if word and uuid.startswith(word)]
        index = int(word) if word.isdecimal() else by_uuid[0] if by_uuid else -1
        if not 0 <= index < len(handles):
            break
        indexes.append(index)
    return indexes
