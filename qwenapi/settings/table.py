"""Every setting of qwenapi, in one table: the fields of Settings.

From each come its flag, its QWENAPI_* variable, its key in a TOML file, its line of `--help` and
its row in docs/settings.md. Refuses to know where values come from, and what they do.
"""

import os
import sys
import typing
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from qwenapi.settings.image_settings import ImageSettings
from qwenapi.settings.setting import Setting, kind_of
from qwenapi.settings.setting import row as _row
from workers.checkpoint.folder import model_name
from workers.checkpoint.hub_name import HubName
from workers.config import EngineConfig

DEMO_MODEL_NAME = "qwen-demo"


@dataclass(frozen=True)
class Settings(ImageSettings):
    """The settings of one start. Field `limits_x` is key `x` of table `[limits]`."""

    model: str = _row("", "directory of the model, or its name on a hub; empty: the demo model")
    model_source: str = _row(
        "huggingface",
        "hub that a model is fetched from which is no directory here",
        scope="model",
        choices=("huggingface", "modelscope"),
    )
    served_model_name: tuple[str, ...] = _row(
        (),
        "names callers may use, the answered one first; none: directory's or hub's",
        scope="http",
    )
    model_alias: tuple[str, ...] = _row((), "more names, NAME=SERVED; * is anything", scope="http")
    host: str = _row("127.0.0.1", "address to listen on", scope="http")
    port: int = _row(8000, "port; 0: any free one", scope="http", minimum=0, maximum=65535)
    uds: str = _row("", "Unix socket to listen on instead of host and port", scope="http")
    profile: str = _row("all", "a name in etc/profiles, or a TOML file")
    config: str = _row("", "TOML file laid over the profile")
    run_dir: str = _row("", "folder of sockets and shared memory; empty: one per command and port")
    model_run_dir: str = _row(
        "", "run folder of the model half; empty: the one named like the model", scope="http"
    )
    state_dir: str = _row(
        "", "folder of what outlives a restart; empty: one of the user's", scope="http"
    )
    conversations: str = _row(
        "sqlite", "where conversations are kept: sqlite, or a redis:// URL", scope="http"
    )
    auth_mode: str | None = _row(
        None,
        "whether keys are asked for; none: open on loopback only; with keys set: keys",
        scope="http",
        choices=("open", "keys"),
    )
    auth_keys: str = _row(
        "", "file of keys; empty: $CREDENTIALS_DIRECTORY/keys.json if any", scope="http"
    )
    api_key: str = _row(
        "", "one key without limits, any text; better in the environment", scope="http", secret=True
    )
    trusted_hosts: tuple[str, ...] = _row(
        (), "names a caller's Host may have; none: any", scope="http"
    )
    task: str = _row(
        "auto",
        "what the model is served for; auto: as its folder says, text if it says nothing",
        scope="model",
        choices=("auto", "generate", "embed", "rerank"),
        synonyms={"embedding": "embed", "score": "rerank"},
    )
    max_model_len: int = _row(
        0, "most tokens of prompt and answer; 0: as the model says", scope="model", minimum=0
    )
    rope_scaling: str = _row(
        "",
        "how positions are stretched, in the place of config.json's rope_scaling; JSON",
        scope="model",
    )
    hf_overrides: str = _row("", "fields in the place of config.json's; JSON", scope="model")
    max_num_seqs: int = _row(
        256, "most sequences in one engine step", scope="model", minimum=1, maximum=4096
    )
    max_num_batched_tokens: int = _row(
        0, "most tokens in one engine step; 0: 8192 on CUDA, 512 on CPU", scope="model", minimum=0
    )
    target_step_ms: int = _row(
        0,
        "milliseconds in which a step with prompts is to end where others wait for their next"
        " token (many prompts at once: 16 times that, in turns); 0: 150 on CPU, none on CUDA",
        scope="model",
        minimum=0,
    )
    block_size: int = _row(
        0, "tokens in a cache block; 0: 64 on CUDA, 32 on CPU", scope="model", minimum=0
    )
    num_blocks: int = _row(
        0, "cache blocks of each engine; 0: from free memory", scope="model", minimum=0
    )
    kv_cache_gb: float = _row(
        0.0, "GiB of cache of each engine; 0: from free memory", scope="model", minimum=0
    )
    state_memory_fraction: float = _row(
        0.0,
        "part of the cache that is state slots, in hybrid models; 0: one slot for each of"
        " max_num_seqs, and one for every 2,048 tokens of the rest",
        scope="model",
        minimum=0,
        maximum=0.95,
    )
    gpu_memory_utilization: float = _row(
        0.9, "part of each GPU's memory that is filled", scope="model", minimum=0.05, maximum=1.0
    )
    dtype: str = _row(
        "auto",
        "type of weights and cache; auto: bfloat16 where the hardware multiplies it",
        scope="model",
        choices=("auto", "float32", "bfloat16", "float16"),
        synonyms={"float": "float32", "half": "float16"},
    )
    device: str = _row(
        "auto",
        "where engines run; auto: CUDA if any",
        scope="model",
        choices=("auto", "cpu", "cuda"),
    )
    quantization: str = _row(
        "auto",
        "how weights are packed; auto: as config.json says; plain ones are rounded by fp8 on a GPU,"
        " by int8 and int4 on a CPU",
        scope="model",
        choices=("auto", "none", "awq", "gptq", "fp8", "int8", "int4", "compressed-tensors"),
    )
    attention_backend: str = _row(
        "auto",
        "what computes attention; auto: Triton's kernels on CUDA where they run, compiled functions"
        " on a CPU with a C compiler, else torch",
        scope="model",
        choices=("auto", "torch", "triton"),
    )
    threads: int = _row(
        0,
        "most CPU threads of each rank; 0: physical cores ÷ all ranks, in a cluster 1",
        scope="model",
        minimum=0,
    )
    enable_prefix_caching: bool = _row(
        True, "keep cache blocks for prompts that begin alike", scope="model"
    )
    num_speculative_tokens: int = _row(
        0,
        "most tokens drafted a step from a sequence's own text, while up to 8 run; 0: none",
        scope="model",
        minimum=0,
        maximum=16,
    )
    speculative_config: str = _row(
        "",
        "who drafts how many tokens a step, as vLLM writes it: method ngram or mtp; JSON",
        scope="model",
    )
    async_scheduling: str = _row(
        "auto",
        "whether a step begins before the last is read, unless drafts are made; auto: on CUDA",
        scope="model",
        choices=("auto", "on", "off"),
    )
    enforce_eager: bool = _row(
        False, "CUDA: launch every kernel by itself, without graphs", scope="model"
    )
    deterministic: bool = _row(
        False, "the same bits whatever else is in the batch; slower", scope="model"
    )
    tensor_parallel_size: int = _row(
        1, "ranks that share an engine's model", scope="model", minimum=1, maximum=64
    )
    enable_expert_parallel: bool = _row(
        False, "each rank has some experts whole, not a part of all", scope="model"
    )
    allow_cross_node_tp: bool = _row(
        False, "in a cluster, an engine's ranks may be on several nodes", scope="model"
    )
    data_parallel_size: int = _row(
        1, "engines, each with its copy of the model", scope="model", minimum=1, maximum=999
    )
    cluster: str = _row(
        "", "Ray cluster that engines run in: auto, or HOST:PORT; empty: they run on this machine"
    )
    wire_tls_cert: str = _row("", "certificate for TLS between machines of a cluster; PEM")
    wire_tls_key: str = _row("", "its key; PEM")
    wire_tls_ca: str = _row("", "authority that signed all of their certificates; PEM")
    api_server_count: int = _row(1, "HTTP processes", scope="http", minimum=1, maximum=32)
    limits_max_running: int = _row(
        0, "requests running at once; 0: as many as the engine takes", scope="http", minimum=0
    )
    limits_max_waiting: int = _row(
        1024, "requests waiting to run before the next is refused with 503", minimum=1
    )
    limits_queue_timeout: float = _row(
        300.0, "seconds a request may wait to run", scope="http", minimum=0
    )
    limits_socket_timeout: float = _row(
        30.0,
        "seconds a caller may neither send its body nor take its answer",
        scope="http",
        minimum=0.1,
    )
    limits_head_timeout: float = _row(
        15.0,
        "seconds from a request's first byte to the end of its head",
        scope="http",
        minimum=0.1,
    )
    limits_connections_per_address: int = _row(
        2048,
        "open connections of one address to each HTTP process, then 429; 0: any number",
        scope="http",
        minimum=0,
    )
    max_body_bytes: int = _row(
        4 * 1024 * 1024, "largest request body; above it 413", scope="http", minimum=1024
    )
    batches_max_file_bytes: int = _row(
        100 * 1024 * 1024,
        "largest file of requests for a batch; 0: no files and no batches",
        scope="http",
        minimum=0,
    )
    batches_concurrency: int = _row(
        16, "lines of each batch under way at a time", scope="http", minimum=1, maximum=1024
    )
    standby: bool = _row(False, "keep a process in which the next engine starts", scope="model")
    standby_weights: bool = _row(False, "--standby, with weights held in memory", scope="model")
    step_timeout: float = _row(
        0.0,
        "seconds without a step after which an engine is hung; 0: from its recent steps",
        scope="model",
        minimum=0,
    )
    drain_timeout: float = _row(590.0, "seconds running requests get at a stop", minimum=0)
    log_requests: bool = _row(True, "log one line for each request", scope="http")
    log_level: str = _row(
        "info", "least grave line to log", choices=("debug", "info", "warning", "error")
    )
    log_format: str = _row("console", "shape of log lines", choices=("console", "json"))
    otel_endpoint: str = _row(
        "", "OTLP/HTTP collector that gets a trace of each request; empty: none", scope="http"
    )
    defaults_max_tokens: int | None = _row(
        None,
        "max_tokens where a request has none; none: the room left, 16 for /v1/completions",
        scope="http",
        minimum=1,
    )
    defaults_temperature: float | None = _row(
        None,
        "temperature where a request has none; none: the model's",
        scope="http",
        minimum=0,
        maximum=2,
    )
    defaults_top_p: float | None = _row(
        None,
        "top_p where a request has none; none: the model's",
        scope="http",
        minimum=0,
        maximum=1,
    )
    defaults_top_k: int | None = _row(
        None, "top_k where a request has none; none: the model's", scope="http", minimum=0
    )
    defaults_min_p: float | None = _row(
        None,
        "min_p where a request has none; none: the model's",
        scope="http",
        minimum=0,
        maximum=1,
    )
    defaults_repetition_penalty: float | None = _row(
        None,
        "repetition_penalty where a request has none; none: the model's",
        scope="http",
        minimum=0.01,
        maximum=2,
    )
    tool_call_parser: str = _row(
        "auto",
        "format of tool calls; auto: the one the model's chat template shows",
        scope="http",
        choices=("auto", "hermes", "qwen3_coder", "qwen3_xml", "none"),
    )
    enable_auto_tool_choice: bool = _row(
        True, "let the model decide whether to call a tool", scope="http"
    )
    reasoning_parser: str = _row(
        "auto",
        "whether thoughts are told from content; auto: where the chat template thinks",
        scope="http",
        choices=("auto", "qwen3", "none"),
    )
    reasoning_field: str = _row(
        "both",
        "name of the field that carries thoughts",
        scope="http",
        choices=("both", "reasoning_content", "reasoning"),
    )
    template_repair: bool = _row(
        True, "make conversations fit for templates that refuse them as they are", scope="http"
    )
    generation_config: str = _row(
        "auto",
        "whose sampling defaults hold; auto: generation_config.json's; vllm: neutral ones; or a"
        " directory with another generation_config.json",
    )
    override_generation_config: str = _row(
        "", "sampling defaults in the place of generation_config.json's; JSON", scope="http"
    )
    alerts_error_rate: float = _row(
        0.05,
        "share of failed requests in 5 minutes above which error_rate is up",
        scope="http",
        minimum=0,
        maximum=1,
    )
    alerts_min_requests: int = _row(
        20, "fewest requests from which error_rate and ttft_p95 judge", scope="http", minimum=1
    )
    alerts_queue: float = _row(
        0.8,
        "share of max_waiting from which queue_near_full is up",
        scope="http",
        minimum=0.01,
        maximum=1,
    )
    alerts_ttft_p95: float = _row(
        10.0,
        "seconds to the first token, 95th percentile of 5 minutes, above which ttft_p95 is up",
        scope="http",
        minimum=0,
    )
    alerts_kv_cache: float = _row(
        0.95,
        "used share of an engine's cache from which, after 30 s, kv_cache_full is up",
        scope="http",
        minimum=0.01,
        maximum=1,
    )
    alerts_engine_restarts: int = _row(
        3, "restarts in 10 minutes from which engine_restarts is up", scope="http", minimum=1
    )
    stub: bool = _row(False, "tests: answer without a model", scope="model", hidden=True)
    stub_step_seconds: float = _row(
        0.0, "tests: seconds of one stub step", scope="model", minimum=0, hidden=True
    )

    @property
    def model_name(self) -> str:
        """Return the short name of the model, its directory's or a hub's; or the demo's."""
        return model_name(os.path.expanduser(self.model)) if self.model else DEMO_MODEL_NAME

    @property
    def served_names(self) -> tuple[str, ...]:
        """Return the names callers may use for the model, the canonical one first."""
        name = HubName.of(self.model)
        return self.served_model_name or (name.repo if name else self.model_name,)

    def engine_config(self) -> EngineConfig:
        """Return what each engine needs; with no model named, the demo that is shipped."""
        names = {wanted.name for wanted in fields(EngineConfig)}
        given = {name: value for name, value in asdict(self).items() if name in names}
        chosen = os.path.expanduser(self.model) if self.model else etc_dir() / "models" / "demo"
        given["model"] = self.model if HubName.of(self.model) else os.path.abspath(chosen)
        if self.generation_config not in ("auto", "vllm"):
            folder = os.path.expanduser(self.generation_config)
            given["generation_config"] = os.path.abspath(folder)
        return EngineConfig(**given, max_waiting=self.limits_max_waiting)


def etc_dir() -> Path:
    """Return the folder of the shipped files: etc/ of a checkout, else share/qwenapi."""
    checkout = Path(__file__).resolve().parents[2] / "etc"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "qwenapi"


@cache
def table() -> dict[str, Setting]:
    """Return all rows by name, in the order of the fields, those of pictures last."""
    hints, late = typing.get_type_hints(Settings), {row.name for row in fields(ImageSettings)}
    return {
        row.name: Setting(
            name=row.name, kind=kind_of(hints[row.name]), default=row.default, **row.metadata
        )
        for row in sorted(fields(Settings), key=lambda row: row.name in late)
    }
