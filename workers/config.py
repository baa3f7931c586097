"""EngineConfig: every setting of one engine process, frozen.

Where they come from (flags, environment, profile) is qwenapi.settings.sources's business.
"""

from dataclasses import dataclass
from typing import Literal

Task = Literal["generate", "embed", "rerank"]


@dataclass(frozen=True)
class EngineConfig:
    """What an engine needs to start.

    `model` is a directory of safetensors, config.json and tokenizer.json. Zeros mean "choose":
    max_model_len from the model's config, max_num_batched_tokens 8192 on CUDA and 512 on CPU,
    target_step_ms 150 on a CPU and none on CUDA, block_size 64 and 32, num_blocks from free memory,
    threads from the physical cores.
    `step_timeout` is in seconds. `rope_scaling`, `hf_overrides` and `speculative_config` are JSON
    objects as text; `task` is auto or a Task; `generation_config` is auto, vllm or a directory.
    `replica` is which of several engines this is, each on the next GPU; -1 is the only one.
    An engine is `tensor_parallel_size` processes, of which this is number `rank`, and number
    `local_rank` of the `num_local_ranks` on its machine. They find each other at the URL
    `rendezvous`: a file, or a TCP address at which the first one listens with `rendezvous_fd`.
    Where they are on several machines, the network interface they meet through is `interface`.
    """

    model: str
    dtype: str = "auto"
    device: str = "auto"
    replica: int = -1
    quantization: str = "auto"
    attention_backend: str = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 0
    block_size: int = 0
    num_blocks: int = 0
    kv_cache_gb: float = 0.0
    state_memory_fraction: float = 0.0
    gpu_memory_utilization: float = 0.9
    threads: int = 0
    enable_prefix_caching: bool = True
    deterministic: bool = False
    num_speculative_tokens: int = 0
    async_scheduling: str = "auto"
    enforce_eager: bool = False
    rope_scaling: str = ""
    hf_overrides: str = ""
    generation_config: str = "auto"
    max_waiting: int = 1024
    step_timeout: float = 0.0
    log_level: str = "info"
    log_format: str = "console"
    stub: bool = False
    stub_step_seconds: float = 0.0
    speculative_config: str = ""
    target_step_ms: int = 0
    task: str = "auto"
    tensor_parallel_size: int = 1
    enable_expert_parallel: bool = False
    rank: int = 0
    local_rank: int = 0
    num_local_ranks: int = 1
    rendezvous: str = ""
    rendezvous_fd: int = -1
    interface: str = ""
    language_model_only: bool = False
