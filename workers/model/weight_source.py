"""Weight sources: which weights transformers loads itself, and which are read beside it.

transformers is given the tensors of the files that the checkpoint names, and looks for none of its
own. Weights that are to be kept in another form are taken out of the class it constructs and read
afterwards, one by one, straight into that form. So neither it nor memory ever sees them whole.
Refuses to know the forms.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import copy
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
from workers.checkpoint.packings import Multiplier
from workers.checkpoint.rounding import FOR_CPUS, Rounding
from workers.errors import ConfigError
from workers.model.expert_weights import take_experts
from workers.model.mtp import MtpModules
from workers.model.quantization.packed_weights import (
    PackedWeight,
    State,
    open_weights,
    take_packed,
)
from workers.model.quantization.rounding import Rounder

_logger = logging.getLogger(__name__)

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
            del module.weight  # a Parameter's name takes nothing else
            module.weight = read()


def open_source(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    kept_by: Multiplier | None,
    rounding: Rounding | None,
) -> AbstractContextManager[Source]:
    """Return the source of a checkpoint's weights; its files are open in the context."""
    if rounding is not None:
        return _open_for_rounding(checkpoint, config, dtype, device, rounding)
    weights = checkpoint.weights
    if kept_by and any(packing.is_kept(kept_by) for packing in weights.packed.values()):
        kept_bytes = weights.kept_bytes(dtype.itemsize, kept_by)
        if (device_map := _device_map(kept_bytes, device)) != "auto":
            return _open_packed(checkpoint, config, dtype, device_map, kept_by)
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
def _open_for_rounding(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    rounding: Rounding,
) -> Iterator[Source]:
    """Yield the source of plain weights that are rounded as they are read."""
    device_map = _device_map(_file_bytes(checkpoint) // 2, device)
    if device_map == "auto":
        raise ConfigError("quantization = 'fp8' is for one GPU, and the model does not fit into it")
    place, rounder = _place(device_map), Rounder(rounding, dtype)
    with open_weights(checkpoint, dtype, place) as state:
        linears = checkpoint.weights.decoder_linears
        taken = {name: state.pop(f"{name}.weight") for name in linears}
        others: dict[str, Callable[[], Any]] = {
            name: partial(_read_rounded, data, place, rounder) for name, data in taken.items()
        }
        if rounding in FOR_CPUS:
            read = partial(_read_rounded, device=place, rounder=rounder)
            others |= take_experts(state, lambda data: partial(read, data))
        model_class = _without_weights(_model_class(checkpoint, config), others)
        yield Source(model_class, _arguments(device_map, state), others)
    _logger.info(
        "weights of layers are rounded to %s; their relative error is %.2f %%",
        rounding,
        100 * rounder.loss,
    )


@contextmanager
def _open_packed(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device_map: DeviceMap,
    kept_by: Multiplier,
) -> Iterator[Source]:
    """Yield the source of packed weights, of which linears of decoder layers stay packed."""
    with open_weights(checkpoint, dtype, _place(device_map)) as state:
        packed = take_packed(state, checkpoint.weights.decoder_linears, kept_by)
        others: dict[str, Callable[[], Any]] = {
            name: partial(weight.keep, kept_by) for name, weight in packed.items()
        }
        if kept_by == "native":
            others |= take_experts(state, lambda data: _keeping(data, kept_by))
        model_class = _without_weights(_model_class(checkpoint, config), others)
        yield Source(model_class, _arguments(device_map, state), others)


def _read_rounded(data: Any, device: torch.device, rounder: Rounder) -> Any:
    return rounder(data[...].to(device))


def _keeping(data: Any, by: Multiplier) -> Callable[[], Any] | None:
    """Return what reads a weight that stays packed; None of others."""
    is_kept = isinstance(data, PackedWeight) and data.packing.is_kept(by)
    return partial(data.keep, by) if is_kept else None


def _without_weights(model_class: Any, linears: Iterable[str]) -> Any:
    """Return the class of a model of which some linears and experts have no weights, by their
    names.
    """

    def construct(self: Any, config: PretrainedConfig) -> None:
        model_class.__init__(self, config)
        for name in linears:
            module = self.get_submodule(name)
            module.weight = None
            for stacked in ("gate_up_proj", "down_proj"):  # of experts
                if hasattr(module, stacked):
                    module.register_parameter(stacked, None)

    return type(model_class.__name__, (model_class,), {"__init__": construct})


def _with_drafter(model_class: Any) -> Any:
    """Return the class of a model that has its layer for multi-token prediction beside it."""

    def construct(self: Any, config: PretrainedConfig) -> None:
        model_class.__init__(self, config)
        self.mtp = MtpModules(config, self.model)

    changes = {"__init__": construct, "_keys_to_ignore_on_load_unexpected": None}
    return type(model_class.__name__, (model_class,), changes)


def _with_whole_routers(model_class: Any, num_experts: int) -> Any:
    """Return the class of a model that has some of its experts, but chooses among all of them."""

    def construct(self: Any, config: PretrainedConfig) -> None:
        model_class.__init__(self, config)
        whole = copy(config)
        whole.num_experts = num_experts
        for module in self.modules():
            if hasattr(module, "experts") and hasattr(module, "gate"):
                module.gate = type(module.gate)(whole)

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
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if checkpoint.weights.has_drafter:
        model_class = _with_drafter(model_class)
    plan = checkpoint.shard_plan
    if plan is not None and plan.by_expert:
        return _with_whole_routers(model_class, plan.num_experts)
    return model_class


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
