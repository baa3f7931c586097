"""Tiny random models on disk, engines over them, and a driver that runs an engine to its end."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.wire.protocol import (
    Chunk,
    Failed,
    Finished,
    Generate,
    SamplingParams,
    TokenLogprob,
)

# tests/gpu/check.py runs these same tests on CUDA.
DEVICE = os.environ.get("QWENAPI_TEST_DEVICE", "cpu")
# With `triton` and TRITON_INTERPRET=1, they run on a CPU through the kernels.
ATTENTION = os.environ.get("QWENAPI_TEST_ATTENTION", "auto")
EOS = 2
DIMENSIONS = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 32768,
    "eos_token_id": EOS,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
# Three layers with a state, half as many heads of keys as of values, and one with attention, of
# whose heads a quarter is rotated.
HYBRID = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "initializer_range": 0.1,
}
MIXTURE = {
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
# A head's size then follows from the others: 16.
UNSAID = {"head_dim": None, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, UNSAID),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": (Qwen2MoeForCausalLM, Qwen2MoeConfig, UNSAID | MIXTURE),
    "qwen3_next": (Qwen3NextForCausalLM, Qwen3NextConfig, HYBRID | MIXTURE),
    "qwen3_5": (Qwen3_5ForCausalLM, Qwen3_5TextConfig, HYBRID | {"tie_word_embeddings": True}),
    "qwen3_5_moe": (
        Qwen3_5MoeForCausalLM,
        Qwen3_5MoeTextConfig,
        HYBRID | MIXTURE | {"intermediate_size": None},
    ),
}
HYBRIDS = ("qwen3_next", "qwen3_5", "qwen3_5_moe")


class Driver:
    """An engine, and everything it has said about each request."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.chunks: dict[object, list[Chunk]] = {}
        self.started: list[object] = []
        self.cached_tokens: dict[object, int] = {}
        self.finished: dict[object, Finished] = {}
        self.failed: dict[object, Failed] = {}
        self.prompt_logprobs: dict[object, list[TokenLogprob]] = {}
        self.steps = 0

    def add(self, key: int, prompt: Iterable[int], **fields: object) -> None:
        """Queue a greedy request of 16 tokens that nothing stops, unless `fields` say so."""
        wire = {
            name: fields.pop(name) for name in list(fields) if name in Generate.__struct_fields__
        }
        params = {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True} | fields
        self.engine.add(
            key,
            Generate(
                wid=key,
                request_id=str(key),
                prompt_ids=tuple(prompt),
                params=SamplingParams(**params),
                **wire,
            ),
        )

    def step(self) -> None:
        output = self.engine.step()
        self.engine.check_integrity()
        self.steps += 1
        self.started += [key for key, _ in output.started]
        self.cached_tokens |= {key: started.cached_tokens for key, started in output.started}
        for key, scores in output.prompt_logprobs:
            known = self.prompt_logprobs.setdefault(key, [])
            assert scores.position == len(known) + 1 and key not in self.chunks
            known += scores.logprobs
        for key, chunk in output.chunks:
            chunks = self.chunks.setdefault(key, [])
            before = sum(len(c.token_ids) for c in chunks if c.choice == chunk.choice)
            assert chunk.position >= before
            chunks.append(chunk)
        for key, finished in output.finished:
            assert key not in self.finished and key not in self.failed
            self.finished[key] = finished
        for key, failed in output.failed:
            assert key not in self.finished and key not in self.failed
            self.failed[key] = failed

    def run(self, most_steps: int = 10_000) -> "Driver":
        while self.engine.has_work:
            self.step()
            assert self.steps < most_steps, "the engine makes no progress"
        return self

    def tokens(self, key: int, choice: int = 0) -> list[int]:
        chunks = [chunk for chunk in self.chunks.get(key, []) if chunk.choice == choice]
        return [token for chunk in chunks for token in chunk.token_ids]


def write_model(path: Path, name: str, **changes: object) -> PreTrainedModel:
    """Write a model whose weights are large enough that its logits are not all alike."""
    model_class, config_class, own = MODELS[name]
    fields = {k: v for k, v in (DIMENSIONS | own | changes).items() if v is not None}
    torch.manual_seed(20)
    model = model_class(config_class(**fields)).eval()
    if name in HYBRIDS:
        disturb_norms(model)
    else:
        enlarge_weights(model)
    model.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 3]}))
    Tokenizer(models.BPE()).save(str(path / "tokenizer.json"))
    return model


def enlarge_weights(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        elif parameter.shape[0] != model.config.hidden_size:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.1)


def disturb_norms(model: PreTrainedModel) -> None:
    """Leave the weights as their configuration made them, but for those that would change nothing.

    Enlarged as above, a hybrid differs from itself, cut and whole, by more than 1e-3 of a logprob.
    """
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    """Return the directory of a tiny model and the model itself, made once."""
    made: dict[str, tuple[Path, PreTrainedModel]] = {}

    def model_of(name: str) -> tuple[Path, PreTrainedModel]:
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            made[name] = (path, write_model(path, name))
        return made[name]

    return model_of


@pytest.fixture
def drive(model_of) -> Callable[..., Driver]:
    """Return a driver of a new float32 engine over a tiny model."""

    def drive(name: str = "qwen3", clock: Callable[[], float] | None = None, **settings) -> Driver:
        defaults = {"num_blocks": 400, "block_size": 8, "threads": 2, "dtype": "float32"}
        if not settings.get("deterministic"):
            defaults["attention_backend"] = ATTENTION
        config = EngineConfig(str(model_of(name)[0]), device=DEVICE, **(defaults | settings))
        more = {} if clock is None else {"clock": clock}
        return Driver(Engine(config, lambda stage, fraction: None, **more))

    return drive


@pytest.fixture
def prompts() -> Callable[..., list[list[int]]]:
    """Return prompts of different lengths, the same every time."""

    def prompts(count: int, longest: int = 120, seed: int = 7) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, longest, (count,), generator=generator).tolist()
        return [torch.randint(4, 320, (n,), generator=generator).tolist() for n in lengths]

    return prompts
