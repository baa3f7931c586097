"""Weight sources: which weights transformers loads itself, and which are read beside it.

transformers is given the tensors of the files that the checkpoint names, and looks for none of its
own. Weights that are to be kept in another form are taken out of the class it constructs and read
afterwards, one by one, straight into that form. So neither it nor memory ever sees them whole.
Refuses to know the forms.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)

from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ConfigError
from workers.model.quantization import fp8
from workers.model.quantization.packed_weights import State, open_weights, take_packed

DeviceMap = str | torch.device | None


class Source(NamedTuple):
    """A class with from_pretrained, its arguments that say where weights come from and where they
    go, and what reads each of the other weights, by the names of their modules.
    """

    model_class: Any
    arguments: dict[str, Any]
    others: Mapping[str, Callable[[], Any]]

    def hold_others(self, model: PreTrainedModel, progress: Callable[[str, float], None]) -> None:
        """Read the other weights into their modules, where `linear.merge` will take them."""
        for index, (name, read) in enumerate(self.others.items()):
            progress("packing weights", index / len(self.others))
            module: Any = model.get_submodule(name)
            del module.weight
            module.weight = read()


def open_source(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    keep_packed: bool,
    as_fp8: bool,
) -> AbstractContextManager[Source]:
    """Return the source of a checkpoint's weights; its files are open in the context."""
    if as_fp8:
        return _open_for_fp8(checkpoint, config, dtype, device)
    weights = checkpoint.weights
    has_kernels = any(packing.has_kernels for packing in weights.packed.values())
    kept_bytes = weights.kept_bytes(dtype.itemsize)
    if has_kernels and keep_packed and _device_map(kept_bytes, device) != "auto":
        return _open_packed(checkpoint, config, dtype, device)
    return _open_whole(checkpoint, config, dtype, device)


@contextmanager
def _open_whole(
    checkpoint: Checkpoint, config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> Iterator[Source]:
    """Yield the source of weights that are plain, or unpacked as they are read."""
    weights = checkpoint.weights
    unpacked_bytes = weights.num_parameters * dtype.itemsize
    device_map = _device_map(unpacked_bytes if weights.packed else _file_bytes(checkpoint), device)
    with open_weights(checkpoint, dtype, _place(device_map)) as state:
        yield Source(_model_class(checkpoint, config), _arguments(device_map, state), {})


@contextmanager
def _open_for_fp8(
    checkpoint: Checkpoint, config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> Iterator[Source]:
    """Yield the source of plain weights that are rounded as they are read."""
    device_map = _device_map(_file_bytes(checkpoint) // 2, device)
    if device_map == "auto":
        raise ConfigError("quantization = 'fp8' is for one GPU, and the model does not fit into it")
    place = _place(device_map)
    with open_weights(checkpoint, dtype, place) as state:
        others = {
            name: partial(_read_as_fp8, state.pop(f"{name}.weight"), place)
            for name in checkpoint.weights.decoder_linears
        }
        model_class = _without_weights(_model_class(checkpoint, config), others)
        yield Source(model_class, _arguments(device_map, state), others)


@contextmanager
def _open_packed(
    checkpoint: Checkpoint, config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> Iterator[Source]:
    """Yield the source of packed weights, of which linears of decoder layers stay packed."""
    device_map = _device_map(checkpoint.weights.kept_bytes(dtype.itemsize), device)
    with open_weights(checkpoint, dtype, _place(device_map)) as state:
        packed = take_packed(state, checkpoint.weights.decoder_linears)
        others = {name: weight.keep for name, weight in packed.items()}
        model_class = _without_weights(_model_class(checkpoint, config), others)
        yield Source(model_class, _arguments(device_map, state), others)


def _read_as_fp8(data: Any, device: torch.device) -> fp8.Fp8Weight:
    return fp8.Fp8Weight.of(data[...].to(device))


def _without_weights(model_class: Any, linears: Iterable[str]) -> Any:
    """Return the class of a model of which some linears have no weight, by their names."""

    def construct(self: Any, config: PretrainedConfig) -> None:
        model_class.__init__(self, config)
        for name in linears:
            self.get_submodule(name).weight = None

    return type(model_class.__name__, (model_class,), {"__init__": construct})


def _arguments(device_map: DeviceMap, state: State) -> dict[str, Any]:
    """Return the arguments of from_pretrained that make it read these tensors and no file."""
    return {
        "pretrained_model_name_or_path": None,
        "state_dict": state,
        "device_map": device_map,
    }


def _model_class(checkpoint: Checkpoint, config: PretrainedConfig) -> Any:
    if checkpoint.is_classifier:
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _file_bytes(checkpoint: Checkpoint) -> int:
    return checkpoint.weights.disk_bytes


def _place(device_map: DeviceMap) -> torch.device:
    """Return where to unpack what transformers then places."""
    return device_map if isinstance(device_map, torch.device) else torch.device("cpu")


def _device_map(num_bytes: int, device: torch.device) -> DeviceMap:
    """Spread over all GPUs only what one cannot hold with room left for a cache."""
    if device.type == "cpu":
        return None
    if device.index is None and torch.cuda.device_count() > 1:
        free, _ = torch.cuda.mem_get_info(0)
        if num_bytes > 0.8 * free:
            return "auto"
    return torch.device("cuda", device.index or 0)
