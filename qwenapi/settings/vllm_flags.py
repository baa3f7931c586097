"""vLLM's flags that are no settings here, so that its start lines can be used as they are.

One table. A flag is taken at the values that ask for nothing, and refused in a sentence at others.
What has no meaning here is ignored, with one line that says why. Flags of the same name and meaning
are settings (table.py).
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VllmFlag:
    """One flag. `neutral`: the values that ask for nothing; None: it is ignored at any.

    A switch has no value: given as it stands it is "true", with `--no-` in front "false".
    """

    names: str
    says: str
    neutral: tuple[str, ...] | None = None
    is_switch: bool = False


_SIZE = ("1",)
_RANKS = (
    "layers are not spread over processes; share each with --tensor-parallel-size, or start more"
    " engines with --data-parallel-size"
)
_NO_CODE = "code from a model's folder is never run"
_NO_SWAP = "cache blocks are never swapped out"
_ALWAYS = "prompts are always computed in chunks among others' answers"
_NOT_UVICORN = "there is no uvicorn here; use --log-level"
_NO_LORA = "adapters are not supported: merge them into the model"
_LAYOUT = "how processes are laid out is the server's own"

VLLM_FLAGS = (
    VllmFlag("--pipeline-parallel-size -pp", _RANKS, _SIZE),
    VllmFlag("--decode-context-parallel-size -dcp", _RANKS, _SIZE),
    VllmFlag("--enable-chunked-prefill", _ALWAYS, ("true",), is_switch=True),
    VllmFlag("--enable-lora", _NO_LORA, ("false",), is_switch=True),
    VllmFlag("--cpu-offload-gb", "weights are not kept outside the device", ("0", "0.0")),
    VllmFlag("--kv-cache-dtype", "the cache has the type of the weights", ("auto",)),
    VllmFlag("--load-format", "weights are read from safetensors", ("auto", "safetensors")),
    VllmFlag("--tokenizer-mode", "tokenizer.json is read as it is", ("auto", "hf", "fast")),
    VllmFlag("--model-impl", "models are this server's own", ("auto",)),
    VllmFlag("--runner", "say what the model is served for with --task", ("auto", "generate")),
    VllmFlag("--convert", "say what the model is served for with --task", ("auto", "none")),
    VllmFlag("--scheduling-policy", "lower `priority` first, then by time", ("fcfs", "priority")),
    VllmFlag("--response-role", "answers are the assistant's", ("assistant",)),
    VllmFlag("--seed", "an answer without `seed` differs each time", ("0",)),
    VllmFlag("--revision", "write it behind the name, --model ORG/NAME@REVISION", ()),
    VllmFlag("--download-dir", "the cache is the hub library's own; set HF_HOME", ()),
    VllmFlag("--chat-template", "the model's own chat template is used", ()),
    VllmFlag("--tokenizer", "the model's own tokenizer is used", ()),
    VllmFlag("--trust-remote-code", _NO_CODE, is_switch=True),
    VllmFlag("--disable-log-stats", "figures are not logged; see /metrics", is_switch=True),
    VllmFlag("--uvicorn-log-level", _NOT_UVICORN),
    VllmFlag("--disable-uvicorn-access-log", _NOT_UVICORN, is_switch=True),
    VllmFlag("--swap-space", _NO_SWAP),
    VllmFlag("--max-seq-len-to-capture", "graphs are captured as they are needed"),
    VllmFlag("--compilation-config -O", "graphs are captured as they are needed"),
    VllmFlag("--max-log-len", "prompts are never logged"),
    VllmFlag("--distributed-executor-backend", _LAYOUT),
    VllmFlag("--disable-frontend-multiprocessing", _LAYOUT, is_switch=True),
    VllmFlag("--disable-custom-all-reduce", _LAYOUT, is_switch=True),
    VllmFlag("--max-parallel-loading-workers", _LAYOUT),
    VllmFlag("--guided-decoding-backend", "there is one grammar library, if any"),
    VllmFlag("--num-scheduler-steps", "each step is scheduled"),
    VllmFlag("--use-v2-block-manager", "there is one block manager", is_switch=True),
)


def add_vllm_flags(parser: argparse.ArgumentParser) -> None:
    """Let a parser take the flags of the table; they leave nothing in what it parses."""
    for flag in VLLM_FLAGS:
        names = flag.names.split()
        if flag.is_switch:
            names.append("--no-" + names[0].removeprefix("--"))
        parser.add_argument(
            *names,
            action=_Taken,
            flag=flag,
            nargs=0 if flag.is_switch else None,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


class _Taken(argparse.Action):
    """Look at one flag of the table, and forget it."""

    def __init__(self, *args: Any, flag: VllmFlag, **options: Any) -> None:
        super().__init__(*args, **options)
        self._flag = flag

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        name = option_string or self._flag.names
        is_on = "false" if name.startswith("--no-") else "true"
        value = is_on if self._flag.is_switch else str(values)
        if self._flag.neutral is None:
            print(f"qwenapi: {name} is ignored: {self._flag.says}", file=sys.stderr)
        elif value not in self._flag.neutral:
            said = name if self._flag.is_switch else f"{name} {value}"
            parser.error(f"{said} is not supported: {self._flag.says}")
