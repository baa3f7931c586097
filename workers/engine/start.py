"""Start an engine: load the weights, size the KV cache beside them, describe it in a ModelCard.

The order matters for memory: weights first, then a worst-case step, then the cache takes what is
left. Refuses to know requests.
"""

import ctypes
import logging

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.packings import Multiplier
from workers.checkpoint.rounding import FOR_CPUS, Rounding
from workers.checkpoint.speculative_config import MAX_SPECULATING_ROWS, SpeculativeConfig
from workers.config import EngineConfig
from workers.cpu_cores import physical_cores
from workers.engine.image_encoder import MAX_KEPT_BYTES, ImageEncoder
from workers.engine.model_runner import ModelRunner
from workers.engine.rank_runner import FollowingRunner, LeadingRunner
from workers.engine.sampler import sample
from workers.engine.sampling_rows import SamplingRow
from workers.engine.step_plan import MAX_SCORED_TOKENS
from workers.errors import ConfigError
from workers.model.attention.attention import AttentionPlan, Plan, PrefillSpan
from workers.model.attention.backend import uses_kernels
from workers.model.capacity import (
    CapacityLimits,
    available_bytes,
    block_size_of,
    resolve_limits,
    token_budget_of,
)
from workers.model.decoder import CacheShape, Decoder
from workers.model.graphs import Graphs
from workers.model.layout.paged_plan import PagedPlan
from workers.model.layout.slot_plan import SlotPlan, States
from workers.model.layout.state_plan import SlotCopy, StatePlan, StateSpan
from workers.model.loader import (
    Progress,
    choose_device,
    choose_dtype,
    is_hybrid,
    load_config,
    load_weights,
)
from workers.model.native.native import Native
from workers.model.parallel.group import Group
from workers.model.quantization import fp8
from workers.model.vision_tower import load_tower
from workers.wire.protocol import ModelCard, SamplingParams

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30
# Tokens in a block of the cache in which the worst step is tried.
_WORST_BLOCK = 16

_logger = logging.getLogger(__name__)


def start(config: EngineConfig, progress: Progress) -> tuple[ModelCard, ModelRunner]:
    """Load a model and give it a cache; raise ModelError or ConfigError if that cannot be done."""
    num_ranks = config.tensor_parallel_size
    if num_ranks > 1 and not config.rendezvous:
        raise ConfigError(
            f"tensor_parallel_size = {num_ranks}, but the engine is started in this one process;"
            " leave it out here"
        )
    local_rank = config.local_rank if num_ranks > 1 else -1
    device = choose_device(config.device, config.replica, local_rank, config.num_local_ranks)
    if num_ranks > 1 and device.type == "cuda":
        torch.cuda.set_device(device)  # else every rank would hold a context on the first GPU
    dtype = choose_dtype(config.dtype, device)
    checkpoint = Checkpoint.of(config)
    checkpoint.check_quantization(config.quantization)
    model_config = load_config(checkpoint)
    rounding = checkpoint.rounding(config.quantization)
    if config.deterministic and device.type == "cuda":
        checkpoint.check_deterministic_on_gpu()
    for_kernels = _uses_kernels(config, device, is_hybrid=is_hybrid(model_config))
    if config.deterministic and device.type != "cpu" and not for_kernels:
        raise ConfigError(
            f"--deterministic on {device} is computed by kernels: leave --attention-backend out,"
            " and pip install 'qwenapi[kernels]'"
        )
    native = Native.load(dtype) if _is_compiled(config, device) else None
    _check_rounding(rounding, device, has_native=native is not None)
    shape = CacheShape.of(model_config, dtype, for_kernels=for_kernels, native=native)
    torch.set_num_threads(config.threads or max(1, physical_cores() // config.num_local_ranks))
    _keep_freed_memory()
    if rounding == "fp8":
        fp8.check(device, dtype)
    kept_by: Multiplier | None = "kernels" if for_kernels else "native" if native else None
    model = load_weights(
        checkpoint, model_config, dtype, device, progress, kept_by=kept_by, rounding=rounding
    )
    group = _join(config, device, progress)
    if group is not None and not group.agree(f"{checkpoint.model_hash} {dtype}"):
        raise ConfigError(
            f"the ranks' machines differ in the files of {config.model}, or in the best dtype; have"
            " the same files on all, and set --dtype"
        )
    decoder = _build(config, checkpoint, model, shape, progress, group)
    tower = load_tower(checkpoint, dtype, decoder.device, one_by_one=config.deterministic)
    if checkpoint.why_blind:
        _logger.info("text only, no vision tower is loaded: %s", checkpoint.why_blind)
    if tower is not None and device.type == "cuda":
        progress("measuring memory of pictures", 0.0)
        tower.see_largest()
    limits = _allocate(config, checkpoint, decoder, shape, progress, group)
    graphs = _graphs(config, decoder, limits, progress, is_shared=group is not None)
    progress("ready", 1.0)
    card = _card(checkpoint, dtype, device, limits)
    return card, _runner(decoder, graphs, group, ImageEncoder(tower) if tower else None)


def follow(config: EngineConfig) -> None:
    """Be a rank but the first of an engine: load its part, and compute what the first one does."""
    _, runner = start(config, lambda what, fraction: None)
    assert isinstance(runner, FollowingRunner)
    runner.follow()


def _runner(
    decoder: Decoder, graphs: Graphs | None, group: Group | None, images: ImageEncoder | None
) -> ModelRunner:
    if group is None:
        return ModelRunner(decoder, graphs, images)
    return (FollowingRunner if group.rank else LeadingRunner)(decoder, graphs, group)


def _join(config: EngineConfig, device: torch.device, progress: Progress) -> Group | None:
    """Return the ranks that share the model, once all have loaded their parts; None of one."""
    if config.tensor_parallel_size == 1:
        return None
    progress("waiting for all ranks", 0.0)
    return Group(
        config.rank,
        config.tensor_parallel_size,
        config.rendezvous,
        device,
        is_exact=config.deterministic,
        listen_fd=config.rendezvous_fd,
        interface=config.interface,
    )


def _uses_kernels(config: EngineConfig, device: torch.device, *, is_hybrid: bool) -> bool:
    """Return whether attention, and a hybrid model's states, are the kernels'.

    These take no state back to before a wrong draft, and compute none token by token.
    """
    asked = config.attention_backend
    has_drafts = SpeculativeConfig.of(config).num_tokens > 0
    if not is_hybrid or not (has_drafts or config.deterministic):
        return uses_kernels(asked, device)
    if asked == "triton":
        raise ConfigError(
            "attention_backend = 'triton' is not for hybrid models with drafts or --deterministic;"
            " leave one out"
        )
    if device.type == "cuda":
        _logger.warning(
            "a hybrid model with drafts is computed by torch on %s, without kernels and CUDA"
            " graphs, and so slower than it could be; without --num-speculative-tokens it is not",
            device,
        )
    return False


def _check_rounding(rounding: Rounding | None, device: torch.device, *, has_native: bool) -> None:
    """Raise ConfigError of a form that nothing multiplies here."""
    if rounding in FOR_CPUS and device.type != "cpu":
        raise ConfigError(
            f"quantization = {rounding!r} is for CPUs, and the device is {device}; use fp8"
        )
    if rounding == "int4" and not has_native:
        raise ConfigError(
            "quantization = 'int4' is multiplied by compiled functions in bfloat16 or float32:"
            " install gcc, and leave --attention-backend out"
        )


def _is_compiled(config: EngineConfig, device: torch.device) -> bool:
    return device.type == "cpu" and config.attention_backend == "auto"


def _build(
    config: EngineConfig,
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    shape: CacheShape,
    progress: Progress,
    group: Group | None,
) -> Decoder:
    """Return the decoder without a cache; memory has then held the worst step."""
    progress("merging weights", 0.0)
    task = checkpoint.task
    decoder = Decoder(
        model,
        is_batch_invariant=config.deterministic,
        for_kernels=shape.for_kernels,
        native=shape.native,
        has_head=task != "embed",
        group=group,
        vocab_size=checkpoint.config.vocab_size,
        vision=checkpoint.vision,
    )
    device = decoder.device
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what merging has freed
        progress("measuring memory", 0.0)
        try:
            num_drafts = SpeculativeConfig.of(config).num_tokens
            num_drafted = MAX_SPECULATING_ROWS * (1 + num_drafts)
            num_rows = max(config.max_num_seqs, num_drafted) + MAX_SCORED_TOKENS
            budget = token_budget_of(config, device)
            _run_worst_step(decoder, shape, budget, num_rows, samples=task == "generate")
        except Exception as error:  # Triton's and the compiler's have no common base
            raise ConfigError(
                f"the first step failed on {device}: {error!r}; give it less with"
                " --max-num-batched-tokens, or try --attention-backend torch"
            ) from error
    return decoder


def _allocate(
    config: EngineConfig,
    checkpoint: Checkpoint,
    decoder: Decoder,
    shape: CacheShape,
    progress: Progress,
    group: Group | None,
) -> CapacityLimits:
    """Give a decoder the cache that fits beside it, and say how large that is."""
    device, layers = decoder.device, decoder.layer_devices
    num_layers = decoder.num_attention_layers
    block_bytes = shape.token_bytes * block_size_of(config, device) * num_layers
    # Every layer has as many blocks, so the fullest device decides.
    free_bytes = min(
        available_bytes(d, config.gpu_memory_utilization) // layers.count(d) for d in set(layers)
    ) * len(layers)
    if group is not None:  # all have as many blocks; ranks of CPUs share their machine's memory
        free_bytes //= config.num_local_ranks if device.type == "cpu" else 1
        free_bytes = group.least(free_bytes)
    if checkpoint.vision is not None:
        free_bytes = max(0, free_bytes - MAX_KEPT_BYTES)
    slot_bytes, longest = decoder.slot_bytes, checkpoint.config.context_length
    limits = resolve_limits(config, longest, device, block_bytes, free_bytes, slot_bytes)
    if slot_bytes:
        _logger.info(
            "%d state slots of %.1f MiB beside the cache's blocks, for %d running sequences and"
            " snapshots of prefixes",
            limits.num_state_slots,
            slot_bytes / (1 << 20),
            limits.max_num_seqs,
        )
    progress("allocating cache", 0.0)
    decoder.allocate_cache(shape, limits.num_blocks, limits.block_size, limits.num_state_slots)
    return limits


def _graphs(
    config: EngineConfig,
    decoder: Decoder,
    limits: CapacityLimits,
    progress: Progress,
    *,
    is_shared: bool,
) -> Graphs | None:
    for_kernels = decoder.cache_shape.for_kernels
    if not for_kernels or decoder.device.type != "cuda" or config.enforce_eager:
        return None
    progress("recording graphs", 0.0)
    graphs = Graphs(decoder, limits.max_model_len, limits.max_num_seqs, is_shared=is_shared)
    graphs.warm_up()
    return graphs


def _run_worst_step(
    decoder: Decoder, shape: CacheShape, num_tokens: int, num_rows: int, *, samples: bool
) -> None:
    """Make the allocator take what the largest step needs, so that the cache is sized beside it."""
    decoder.allocate_cache(shape, 2, _WORST_BLOCK, num_slots=2)
    zeros = torch.zeros(num_tokens, dtype=torch.int64, device=decoder.device)
    rows = zeros[: min(num_rows, num_tokens)]
    positions = torch.arange(num_tokens, device=decoder.device)
    plan = _worst_plan(zeros, shape, decoder.is_batch_invariant)
    decoder.copy_states((SlotCopy(None, 1),))
    logits = decoder.forward(zeros, positions, plan, rows, _worst_states(plan, num_tokens))
    if samples:
        params = SamplingParams(max_tokens=1, temperature=1.0, top_k=1, top_p=0.5, logprobs=1)
        sample(logits, [SamplingRow(params)] * len(rows), by_kernels=shape.for_kernels)
    decoder.allocate_cache(shape, 1, 1)


def _worst_plan(zeros: Tensor, shape: CacheShape, is_batch_invariant: bool) -> Plan:
    """Return the plan of one prompt of as many tokens, all of whose blocks are the trash block."""
    num_tokens = zeros.shape[0]
    if not shape.for_kernels:
        blocks = zeros.new_zeros(shape.num_kv_heads * -(-num_tokens // _WORST_BLOCK))
        return AttentionPlan(zeros, (), (PrefillSpan(0, num_tokens, blocks, num_tokens),))
    slots = zeros.int()
    ends = torch.tensor([0, num_tokens], dtype=torch.int32, device=zeros.device)
    return PagedPlan(
        slots, ends, ends[1:], slots[None], num_tokens, is_batch_invariant=is_batch_invariant
    )


def _worst_states(plan: Plan, num_tokens: int) -> States:
    """Return the plan of its states, which lie in slot 1."""
    if isinstance(plan, PagedPlan):
        kept, slots = torch.zeros_like(plan.slots), torch.ones_like(plan.lengths)
        return SlotPlan(plan.starts, plan.lengths, slots, kept, num_tokens)
    return StatePlan((), None, (), (), (StateSpan(0, num_tokens, slot=1),))


def _card(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, limits: CapacityLimits
) -> ModelCard:
    vision = checkpoint.vision
    return ModelCard(
        model_dir=str(checkpoint.directory),
        model_hash=checkpoint.model_hash,
        tokenizer_sha256=checkpoint.tokenizer_sha256,
        architecture=checkpoint.architecture,
        vocab_size=checkpoint.config.vocab_size,
        eos_token_ids=checkpoint.eos_token_ids,
        generation_config=checkpoint.sampling_defaults,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        task=checkpoint.task,
        output_size=checkpoint.output_size,
        image_side=vision.side if vision else 0,
        image_token_id=vision.image_token_id if vision else -1,
        **vars(limits),
    )


def _keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory instead of returning it to the kernel.

    By default every tensor of some megabytes is mapped and zeroed anew: a third of a prefill step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
