"""Size the cache: how many blocks and state slots fit, and how much may therefore run.

Knows memory, of the machine or of its GPUs. Refuses to know what the blocks are used for.
"""

from dataclasses import dataclass

import torch

from workers.checkpoint.speculative_config import SpeculativeConfig
from workers.checkpoint.state_slots import StateSlots
from workers.config import EngineConfig
from workers.errors import ConfigError
from workers.memory import machine_memory

CPU_CACHE_FRACTION = 0.25
CPU_CACHE_BYTES = 4 << 30
GIB = 1 << 30


@dataclass(frozen=True)
class CapacityLimits:
    """The sizes an engine runs with, zeros of its settings resolved."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    num_state_slots: int = 0


def block_size_of(config: EngineConfig, device: torch.device) -> int:
    return config.block_size or (32 if device.type == "cpu" else 64)


def token_budget_of(config: EngineConfig, device: torch.device) -> int:
    return config.max_num_batched_tokens or (512 if device.type == "cpu" else 8192)


def resolve_limits(
    config: EngineConfig,
    longest: int,
    device: torch.device,
    block_bytes: int,
    free_bytes: int,
    slot_bytes: int = 0,
) -> CapacityLimits:
    """Return the limits for a cache in `free_bytes` of a model whose sequences end at `longest`;
    raise ConfigError if there are none.

    `block_bytes` and `slot_bytes` are those of a block and of a state slot in all layers.
    """
    block_size = block_size_of(config, device)
    if config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len = {config.max_model_len}, but the model ends at {longest}; lower it, or"
            " stretch its positions by --rope-scaling"
        )
    max_model_len = config.max_model_len or longest
    budget = token_budget_of(config, device)
    memory = _cache_bytes(config, device, free_bytes)
    running, slots = min(config.max_num_seqs, budget), None
    if slot_bytes:
        drafts = SpeculativeConfig.of(config).num_state_slots(running)
        slots = StateSlots.fit(memory, slot_bytes, running, drafts, config.state_memory_fraction)
        running = slots.running
        memory -= slots.fixed * slot_bytes
        block_bytes += int(slots.per_token * block_size * slot_bytes)
    num_blocks = config.num_blocks or memory // block_bytes
    if not (config.num_blocks or config.kv_cache_gb):  # one more than useful: block 0 is trash
        num_blocks = min(num_blocks, running * -(-max_model_len // block_size) + 1)
    num_slots = slots.total(block_size * num_blocks) if slots else 0
    held = (num_blocks - 1) * block_size
    if config.max_model_len > held or held <= 0:
        raise ConfigError(
            f"max_model_len = {max_model_len} needs more than the {num_blocks} blocks of"
            f" {block_size} tokens that fit; lower it, or raise num_blocks or kv_cache_gb"
        )
    return CapacityLimits(
        min(max_model_len, held), running, budget, block_size, num_blocks, num_slots
    )


def available_bytes(device: torch.device, gpu_memory_utilization: float) -> int:
    """Return what a cache may choose from: free memory, or the part of a GPU that may be filled."""
    if device.type == "cpu":
        return machine_memory().free
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(free - (1 - gpu_memory_utilization) * total))


def _cache_bytes(config: EngineConfig, device: torch.device, free_bytes: int) -> int:
    if config.kv_cache_gb:
        return int(config.kv_cache_gb * GIB)
    if device.type == "cpu":
        return int(min(CPU_CACHE_FRACTION * free_bytes, CPU_CACHE_BYTES))
    return free_bytes
