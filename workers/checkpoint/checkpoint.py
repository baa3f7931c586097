"""Checkpoint: a model folder's config, weights, stop ids, sampling defaults and hash.

Read without torch, each part on first use; config, packing and weights by the modules beside this
one. Refuses to know how weights become a model.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from workers.checkpoint.architectures import (
    ARCHITECTURES,
    Architecture,
    architecture_name,
    architecture_of,
)
from workers.checkpoint.files import read_bytes, read_json
from workers.checkpoint.folder import find_folder
from workers.checkpoint.model_config import ModelConfig, flatten
from workers.checkpoint.overrides import Overrides
from workers.checkpoint.packings import Quantization
from workers.checkpoint.quantization import read_quantization
from workers.checkpoint.rounding import ROUNDINGS, Rounding
from workers.checkpoint.safetensors_header import header_bytes
from workers.checkpoint.sampling_defaults import sampling_defaults
from workers.checkpoint.shard_plan import ShardPlan
from workers.checkpoint.speculative_config import MTP, SpeculativeConfig
from workers.checkpoint.task import task_of
from workers.checkpoint.vision import VisionConfig
from workers.checkpoint.weights import Weights, find_files, read_weights
from workers.config import EngineConfig, Task
from workers.errors import ConfigError, ModelError

# Of what torch multiplies in 8 bits.
_FP8_MULTIPLE = 16


@dataclass(frozen=True)
class Checkpoint:
    """An existing model folder; each property raises ModelError naming the file that is wrong.

    `generation_folder` has the generation_config.json that counts, if it is not the model's own.
    `with_drafter`, its layer for multi-token prediction is one of its weights.
    `asked_task` is auto, or what the model is to be served for. `num_ranks` are to hold it, of
    which this is number `rank`; `by_expert` is how they share experts. With `text_only`, it is to
    see nothing.
    """

    directory: Path
    overrides: Overrides = field(default_factory=Overrides)
    generation_folder: Path | None = None
    with_drafter: bool = False
    asked_task: str = "auto"
    num_ranks: int = 1
    rank: int = 0
    by_expert: bool = False
    text_only: bool = False

    @classmethod
    def at(cls, path: str | Path) -> "Checkpoint":
        """Return what lies in a folder, as it is."""
        return cls(find_folder(path))

    @classmethod
    def of(cls, config: EngineConfig) -> "Checkpoint":
        """Return what an engine is to serve: a folder, and what is laid over its files."""
        folder = config.generation_config
        return cls(
            find_folder(config.model),
            Overrides.parse(config.rope_scaling, config.hf_overrides),
            None if folder in ("auto", "vllm") else Path(folder),
            SpeculativeConfig.of(config).method == MTP,
            config.task,
            config.tensor_parallel_size,
            config.rank,
            config.enable_expert_parallel,
            config.language_model_only,
        )

    def check(self, quantization: str = "auto") -> None:
        """Raise ModelError or ConfigError if the folder cannot be served as a setting asks."""
        self.check_quantization(quantization)
        if self.shard_plan is None and self.by_expert:
            raise ConfigError(
                "enable_expert_parallel shares experts among ranks, and tensor_parallel_size is 1;"
                " leave it out, or raise that"
            )
        if self.rounding(quantization) == "fp8":
            self._check_rounding()
        _ = self.weights, self.eos_token_ids, self.sampling_defaults  # reading is what refuses

    def check_quantization(self, asked: str) -> None:
        """Raise ModelError of a statement about the weights that config.json contradicts."""
        method = self.quantization.method if self.quantization else "none"
        if asked not in ("auto", method) and self.rounding(asked) is None:
            raise ModelError(
                f"{self.config_file}: --quantization {asked}, but the weights are packed as"
                f" {method!r}; leave the flag out"
            )

    def rounding(self, asked: str) -> Rounding | None:
        """Return in what form a setting asks for plain weights, and on a CPU for those of an FP8
        checkpoint, too; None as they are.
        """
        may_be = {None} if asked == "fp8" else {None, "fp8"}
        method = self.quantization.method if self.quantization else None
        return next((form for form in ROUNDINGS if form == asked and method in may_be), None)

    @property
    def config_file(self) -> Path:
        return self.directory / "config.json"

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """Return config.json with its overrides; `config` is what a model is computed from."""
        known = {name for row in ARCHITECTURES.values() for name in row.fields}
        self.overrides.check_names(known)
        return self.overrides.apply(read_json(self.config_file))

    @property
    def architecture(self) -> str:
        return architecture_name(self.raw_config)

    @property
    def text_model_type(self) -> str:
        """The name of the text model alone, in transformers."""
        return self._architecture.text_model_type or self._architecture.model_type

    @cached_property
    def config(self) -> ModelConfig:
        return self._architecture.read_config(self.raw_config, self._place)

    @cached_property
    def quantization(self) -> Quantization | None:
        flat = flatten(self.raw_config, self._place)
        return read_quantization(flat, self._place)

    @cached_property
    def weights(self) -> Weights:
        return read_weights(
            self.directory,
            self._architecture,
            self.config,
            self.quantization,
            with_drafter=self.with_drafter,
            has_head=self.task != "embed",
        )

    @cached_property
    def vision_config(self) -> VisionConfig | None:
        """What the folder says of pictures; None of a model that takes none."""
        tower = self._architecture.tower
        if tower is None or self.text_only:
            return None
        return VisionConfig.read(self.raw_config, self.directory, tower)

    @cached_property
    def vision(self) -> VisionConfig | None:
        """The tower to compute, if there is one and the engine can."""
        if self.vision_config is None or not self.weights.tower or self.task != "generate":
            return None
        return self.vision_config if self.num_ranks == 1 else None

    @property
    def why_blind(self) -> str:
        """Why a model that could see is served for text alone; empty for others."""
        if self._architecture.tower is None or self.vision is not None:
            return ""
        if self.text_only:
            return "--language-model-only"
        if self.num_ranks > 1:
            return "several ranks share none"
        if not self.weights.tower:
            return "the files have none"
        return "there is no preprocessor_config.json" if self.vision_config is None else "its task"

    @cached_property
    def shard_plan(self) -> ShardPlan | None:
        """What of each weight this rank holds, None where it holds all; raise ConfigError of a
        model that so many ranks cannot share.
        """
        if self.num_ranks == 1:
            return None
        plan = ShardPlan(self.config, self.num_ranks, self.rank, self.by_expert)
        plan.check(self.weights)
        return plan

    @cached_property
    def task(self) -> Task:
        return task_of(self.directory, self.architecture, self.asked_task)

    @property
    def is_classifier(self) -> bool:
        return self._architecture.is_classifier

    @property
    def output_size(self) -> int:
        """Return how many numbers the model gives of a token in the end."""
        if self.task == "embed":
            return self.config.hidden_size
        return 1 if self.is_classifier else self.config.vocab_size

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        return read_json(self._generation_file, optional=self.generation_folder is None)

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        return read_json(self.directory / "tokenizer_config.json", optional=True)

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Return the ids that end an answer: generation_config.json's, config.json's and the
        tokenizer's own, each if it is another; raise ModelError of one that is no token.
        """
        inner = self.raw_config.get("text_config")
        sources = {
            self._generation_file: [self.generation_config],
            self.config_file: [self.raw_config, inner if isinstance(inner, dict) else {}],
        }
        ids: list[int] = []
        for file, found in sources.items():
            for source in found:
                ids += self._token_ids(source.get("eos_token_id"), file)
        own = self._tokenizer_eos()
        return tuple(dict.fromkeys(ids if own is None else [*ids, own]))

    @cached_property
    def sampling_defaults(self) -> dict[str, float]:
        """Return the sampling fields of generation_config.json."""
        remedy = "take the file of the published model"
        return sampling_defaults(self.generation_config, str(self._generation_file), remedy)

    @property
    def tokenizer_sha256(self) -> str:
        return hashlib.sha256(read_bytes(self.directory / "tokenizer.json")).hexdigest()

    @property
    def model_hash(self) -> str:
        """Return a cheap identity: config.json and every weight file's name, size and safetensors
        header.
        """
        digest = hashlib.sha256(read_bytes(self.config_file))
        if self.overrides.fields:
            digest.update(json.dumps(self.overrides.fields, sort_keys=True).encode())
        if self.task != "generate":
            digest.update(self.task.encode())
        for file in find_files(self.directory):
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            digest.update(header_bytes(file))
        return digest.hexdigest()

    @property
    def _generation_file(self) -> Path:
        return (self.generation_folder or self.directory) / "generation_config.json"

    @property
    def _architecture(self) -> Architecture:
        return architecture_of(self.raw_config, self._place)

    @property
    def _place(self) -> Path:
        """What a message names where a field of config.json is wrong."""
        changed = " as --hf-overrides and --rope-scaling change it" if self.overrides.fields else ""
        return Path(f"{self.config_file}{changed}")

    def check_deterministic_on_gpu(self) -> None:
        """Raise ConfigError of a model whose exact answers no kernel computes."""
        if self.config.state_bytes:
            raise ConfigError("--deterministic is for hybrid models on a CPU only; leave it out")

    def _check_rounding(self) -> None:
        """Refuse plain weights that the product of 8 bits cannot take."""
        if self.config.state_bytes:
            raise ConfigError("quantization = 'fp8' is not for hybrid models; leave it out")
        for name in self.weights.decoder_linears:
            shape = self.weights.shapes[f"{name}.weight"]
            if self.shard_plan is not None:
                shape = self.shard_plan.shape(f"{name}.weight", shape)
            if any(size % _FP8_MULTIPLE for size in shape):
                raise ConfigError(
                    f"quantization = 'fp8', but {name} of shape {list(shape)} is no multiple of"
                    f" {_FP8_MULTIPLE} both ways; leave the setting out"
                )

    def _token_ids(self, value: Any, file: Path) -> list[int]:
        ids = value if isinstance(value, list) else [value]
        ids = [id_ for id_ in ids if id_ not in (None, -1)]  # as older files say that there is none
        for id_ in ids:
            if type(id_) is not int or not 0 <= id_ < self.config.vocab_size:
                raise ModelError(
                    f"{file}: eos_token_id {id_!r} is no token of the model; take the file of the"
                    " published model"
                )
        return ids

    def _tokenizer_eos(self) -> int | None:
        """Return the id of the token that the tokenizer itself calls its eos."""
        token = self.tokenizer_config.get("eos_token")
        if token is None:
            special = read_json(self.directory / "special_tokens_map.json", optional=True)
            token = special.get("eos_token")
        content = token.get("content") if isinstance(token, dict) else token
        if not isinstance(content, str):
            return None
        tokenizer = read_json(self.directory / "tokenizer.json")
        for added in tokenizer.get("added_tokens") or ():
            if isinstance(added, dict) and added.get("content") == content:
                return self._within(added.get("id"))
        model = tokenizer.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        return self._within(vocab.get(content)) if isinstance(vocab, dict) else None

    def _within(self, id_: Any) -> int | None:
        return id_ if type(id_) is int and 0 <= id_ < self.config.vocab_size else None
