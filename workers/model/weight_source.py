"""Weight sources: which weights transformers loads itself, and which are read beside it.

Weights that are to be kept in another form are taken out of the class that transformers constructs
and read afterwards, one by one, straight into that form. So neither it nor memory ever sees them
whole. Refuses to know the forms.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from workers.checkpoint import Checkpoint
from workers.errors import ConfigError
from workers.model.quantization import fp8
from workers.model.quantization.awq_gptq import Quantization
from workers.model.quantization.packed_weights import Stored, open_linears, open_packed, take_packed

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
        return _open_for_fp8(checkpoint, config, device)
    quantization = Quantization.of(checkpoint)
    if quantization is None:
        return _open_plain(checkpoint, config, device)
    return _open_packed(checkpoint, quantization, config, dtype, device, keep_packed=keep_packed)


@contextmanager
def _open_plain(
    checkpoint: Checkpoint, config: PretrainedConfig, device: torch.device
) -> Iterator[Source]:
    device_map = _device_map(_file_bytes(checkpoint), device)
    yield Source(_model_class(config), _arguments(device_map, checkpoint), {})


@contextmanager
def _open_for_fp8(
    checkpoint: Checkpoint, config: PretrainedConfig, device: torch.device
) -> Iterator[Source]:
    """Yield the source of plain weights that are rounded as they are read."""
    device_map = _device_map(_file_bytes(checkpoint) // 2, device)
    if device_map == "auto":
        raise ConfigError("quantization = 'fp8' is for one GPU, and the model does not fit into it")
    with open_linears(checkpoint, _skeleton(config)) as linears:
        for name, stored in linears.items():
            fp8.check_shape(name, stored.data.get_shape())
        others = {
            name: partial(_read_as_fp8, stored, _place(device_map))
            for name, stored in linears.items()
        }
        model_class = _without_weights(_model_class(config), others)
        yield Source(model_class, _arguments(device_map, checkpoint), others)


@contextmanager
def _open_packed(
    checkpoint: Checkpoint,
    quantization: Quantization,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    keep_packed: bool,
) -> Iterator[Source]:
    """Yield the source of packed weights; those of linears stay packed where one GPU holds all."""
    skeleton, model_class, others = _skeleton(config), _model_class(config), {}
    device_map = _device_map(_file_bytes(checkpoint), device)
    keep_packed = keep_packed and device_map != "auto"
    if not keep_packed:
        device_map = _device_map(skeleton.num_parameters() * dtype.itemsize, device)
    with open_packed(checkpoint, quantization, skeleton, dtype, _place(device_map)) as state:
        if keep_packed:
            others = {name: weight.repack for name, weight in take_packed(state, skeleton).items()}
            model_class = _without_weights(model_class, others)
        yield Source(model_class, _arguments(device_map) | {"state_dict": state}, others)


def _read_as_fp8(stored: Stored, device: torch.device) -> fp8.Fp8Weight:
    return fp8.Fp8Weight.of(stored.data[...].to(device))


def _without_weights(model_class: Any, linears: Iterable[str]) -> Any:
    """Return the class of a model of which some linears have no weight, by their names."""

    def construct(self: Any, config: PretrainedConfig) -> None:
        model_class.__init__(self, config)
        for name in linears:
            self.get_submodule(name).weight = None

    expected = [rf"^{re.escape(name)}\.weight$" for name in linears]
    ignored = expected + list(model_class._keys_to_ignore_on_load_unexpected or ())
    changes = {"__init__": construct, "_keys_to_ignore_on_load_unexpected": ignored}
    return type(model_class.__name__, (model_class,), changes)


def _arguments(device_map: DeviceMap, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    directory = None if checkpoint is None else checkpoint.directory
    return {"pretrained_model_name_or_path": directory, "device_map": device_map}


def _model_class(config: PretrainedConfig) -> Any:
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _skeleton(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = _model_class(config)(config)
    return model


def _file_bytes(checkpoint: Checkpoint) -> int:
    return sum(file.stat().st_size for file in checkpoint.weight_files)


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
