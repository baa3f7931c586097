"""Choose how an engine attends: in plain torch over gathered blocks, or by the Triton kernels."""

import logging
import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

from workers.errors import ConfigError

_logger = logging.getLogger(__name__)


def uses_kernels(asked: str, device: torch.device) -> bool:
    """Return whether to attend by kernels; `auto` is on CUDA, but never under the interpreter.

    Raise ConfigError if they were asked for in vain.
    """
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if asked == "torch" or (asked == "auto" and (device.type != "cuda" or is_interpreted)):
        return False
    obstacle = ""
    if find_spec("triton") is None:
        obstacle = "triton is not installed; pip install 'qwenapi[kernels]'"
    elif device.type != "cuda" and not is_interpreted:
        obstacle = f"the device is {device}; only tests run it there, with TRITON_INTERPRET=1"
    elif device.type == "cuda":
        obstacle = _missing_for_compiling()
    if obstacle and asked == "triton":
        raise ConfigError(f"attention_backend = 'triton', but {obstacle}")
    if obstacle:
        _logger.warning("attention by torch, which is slower than by kernels: %s", obstacle)
    return not obstacle


def _missing_for_compiling() -> str:
    """Return what keeps Triton from compiling its launchers, in C, on this machine."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler; install gcc"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "triton needs Python.h; install python3-dev"
    return ""
