"""The record: which formats of weights each architecture was loaded from, and as the pages' table.

`pytest tests/model/test_formats.py --record` adds to `record.json` what was loaded; without the
option a test fails where it loads what is not recorded. Whoever takes a case away deletes the file
before.
"""

import json
from pathlib import Path

from workers.checkpoint.architectures import ARCHITECTURES
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.packings import ScaledPacking, WordPacking

FILE = Path(__file__).with_name("record.json")
# In English and Chinese; by what `format_of` returns.
COLUMNS = {
    "plain": ("plain", "普通"),
    "fp8": ("FP8", "FP8"),
    "awq 4": ("AWQ", "AWQ"),
    "gptq 4": ("GPTQ, 4 bits", "GPTQ 4 位"),
    "gptq 8": ("GPTQ, 8 bits", "GPTQ 8 位"),
    "compressed-tensors 4": ("c-t pack-quantized, 4 bits", "c-t pack-quantized 4 位"),
    "compressed-tensors 8": ("c-t pack-quantized, 8 bits", "c-t pack-quantized 8 位"),
    "compressed-tensors I8": ("c-t int-quantized", "c-t int-quantized"),
    "compressed-tensors F8_E4M3": ("c-t float-quantized", "c-t float-quantized"),
}
CELLS = {
    "as it is": ("as it is", "原样"),
    "unpacked": ("unpacked", "解包"),
    "kept on CPUs": ("as packed on CPUs", "CPU 上不解包"),
    "kept by kernels": ("as packed in kernels", "内核中不解包"),
}


def read() -> dict[str, dict[str, list[str]]]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def add(path: Path, how: str) -> None:
    """Put into the record how a checkpoint was loaded, one of CELLS."""
    known, checkpoint = read(), Checkpoint.at(path)
    seen = known.setdefault(checkpoint.architecture, {})
    form = format_of(checkpoint)
    seen[form] = [cell for cell in CELLS if cell in {how, *seen.get(form, ())}]
    ordered = {
        name: {form: known[name][form] for form in COLUMNS if form in known[name]}
        for name in ARCHITECTURES
        if name in known
    }
    FILE.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


def has(path: Path, how: str) -> bool:
    checkpoint = Checkpoint.at(path)
    return how in read().get(checkpoint.architecture, {}).get(format_of(checkpoint), ())


def table(language: int = 0) -> str:
    """Return the record as Markdown: a row an architecture, a column a format."""
    titles = [("architecture", "架构")[language], *(words[language] for words in COLUMNS.values())]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, seen in read().items():
        cells = [
            ("; ", "；")[language].join(CELLS[cell][language] for cell in seen.get(form, ())) or "–"
            for form in COLUMNS
        ]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def table_zh() -> str:
    return table(1)


def format_of(checkpoint: Checkpoint) -> str:
    """Return the method of a checkpoint, with the bits or the type of what it has packed."""
    if checkpoint.quantization is None:
        return "plain"
    method, packing = checkpoint.quantization.method, checkpoint.quantization.rules[0].packing
    if isinstance(packing, WordPacking):
        return f"{method} {packing.bits}"
    assert isinstance(packing, ScaledPacking)
    return method if method == "fp8" else f"{method} {packing.dtype}"
