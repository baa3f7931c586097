"""Load a checkpoint as a transformers model.

What can be served, and what is wrong with the rest, is workers/checkpoint's to say. Code from a
model directory is never run, pickles are never read.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.packings import Multiplier
from workers.checkpoint.rounding import Rounding
from workers.errors import ConfigError, ModelError
from workers.model.weight_source import open_source

Progress = Callable[[str, float], None]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_logger = logging.getLogger(__name__)


def choose_device(
    name: str, replica: int = -1, local_rank: int = -1, num_local_ranks: int = 1
) -> torch.device:
    """Return the device a setting names; `auto` is CUDA where there is one. Replicas take turns, as
    do the ranks of each on this machine; -1 is the only one there is.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device = {name!r}, but torch sees no CUDA device; use device = 'cpu'")
    if device.type != "cuda":
        return device
    if num_local_ranks > (count := torch.cuda.device_count()):
        raise ConfigError(
            f"{num_local_ranks} ranks are on this machine, but torch sees {count} GPUs; lower"
            " tensor_parallel_size, or make more visible"
        )
    if device.index is None and (replica >= 0 or local_rank >= 0):
        number = max(0, replica) * num_local_ranks + max(0, local_rank)
        return torch.device("cuda", number % count)
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype a setting names; `auto` is bfloat16 where the hardware multiplies it."""
    if name == "auto":
        fast = device.type == "cuda" or "avx512_bf16" in _cpu_flags()
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise ModelError(f"dtype = {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def load_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """Return transformers' configuration of what the checkpoint says, and of nothing else; of a
    model that ranks share, that of this one's smaller model.

    Without quantization_config, for which transformers would look for kernels of its own.
    """
    config = checkpoint.config
    values = {
        **config.values,
        "rope_parameters": dict(config.rope.values),
        "layer_types": list(config.layer_types),
        "architectures": [checkpoint.architecture],
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
    }
    if checkpoint.task == "embed":
        values["tie_word_embeddings"] = True  # a head that is nowhere, and that nobody asks
    if checkpoint.is_classifier:
        values["num_labels"] = 1
    if checkpoint.shard_plan is not None:
        values |= checkpoint.shard_plan.fields()
    try:
        return AutoConfig.for_model(checkpoint.text_model_type, **values)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{checkpoint.config_file}: {error}") from error


def is_hybrid(config: PretrainedConfig) -> bool:
    """Return whether some layers have a state in the place of keys and values."""
    return "linear_attention" in (getattr(config, "layer_types", None) or ())


def load_weights(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
    *,
    kept_by: Multiplier | None = None,
    rounding: Rounding | None = None,
) -> PreTrainedModel:
    """Return the transformers model with its weights on `device`, or spread over several GPUs.

    Packed linears of the decoder layers that can be `kept_by` what is to multiply by them stay
    packed, but not where one GPU cannot hold the model. With `rounding`, plain ones are of fewer
    bits. These are for `linear.merge` to take, and for LoopedExperts.
    """
    checkpoint.check(rounding or "auto")
    _note_unused(checkpoint)
    source = open_source(checkpoint, config, dtype, device, kept_by=kept_by, rounding=rounding)
    try:
        with _reporting(progress), source as opened:
            loaded: Any = opened.model_class.from_pretrained(
                **opened.arguments,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            opened.hold_others(loaded[0], progress)
    except (OSError, ValueError) as error:
        raise ModelError(f"{checkpoint.directory}: weights cannot be loaded: {error}") from error
    model: PreTrainedModel = loaded[0]
    _refuse_partial(model, loaded[1], checkpoint)
    model.eval().requires_grad_(False)
    return model


def _note_unused(checkpoint: Checkpoint) -> None:
    unused = checkpoint.weights.unused
    if unused:
        _logger.info(
            "%s: %d scales of activations and cache, as %s, are not used: both keep the dtype of"
            " the model",
            checkpoint.directory,
            len(unused),
            unused[0],
        )


def _refuse_partial(model: PreTrainedModel, info: Any, checkpoint: Checkpoint) -> None:
    """Refuse weights that transformers left on a slower device, or found no place for."""
    missing, unknown = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    assert not missing and not unknown, f"what was checked is not there: {missing + unknown}"
    placed = set(getattr(model, "hf_device_map", {}).values())
    if placed & {"cpu", "disk"}:
        raise ModelError(f"{checkpoint.directory}: does not fit into the visible GPUs' memory")


@contextmanager
def _reporting(progress: Progress) -> Iterator[None]:
    """Route transformers' progress bar over the weights to `progress` as fractions of 1."""

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _Bar(progress, *args, **kwargs)

    previous = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


class _Bar:
    """What transformers uses of tqdm, reporting at most a hundred times."""

    def __init__(self, progress: Progress, iterable: Any = (), *args: Any, **kwargs: Any) -> None:
        self._progress = progress
        self._items = list(iterable or ())

    def __iter__(self) -> Iterator[Any]:
        total = len(self._items)
        stride = max(1, total // 100)
        for index, item in enumerate(self._items):
            if index % stride == 0:
                self._progress("loading weights", index / total)
            yield item
        self._progress("loading weights", 1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _cpu_flags() -> frozenset[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split())
    except OSError as error:
        _logger.warning("cannot read /proc/cpuinfo, assuming no bfloat16 units: %s", error)
    return frozenset()
