"""Read the header of a safetensors file: which tensors it has, without reading them.

Knows how a damaged file, or another in its place, is told. Refuses to know what a model needs.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from workers.checkpoint.files import what_it_is
from workers.errors import ModelError

_LENGTH_BYTES = 8
_MOST_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of one tensor; `name` is its name in the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Return its size; the first number in the name of a type is its bits."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.shape) * (int(bits[0]) // 8 if bits else 1)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file; raise ModelError if it is damaged, or is something else."""
    try:
        file.open("rb").close()  # its OSError says more than the library's
        with safe_open(file, framework="np") as opened:
            tensors = {}
            for name in opened.keys():  # noqa: SIM118, it is no dict
                part = opened.get_slice(name)
                shape = tuple(part.get_shape())
                tensors[name] = StoredTensor(name, file, part.get_dtype(), shape)
            return tensors
    except SafetensorError as error:
        known = what_it_is(file)
        raise ModelError(
            f"{file}: {known}" if known else f"{file}: damaged, {error}; complete the download"
        ) from error
    except OSError as error:
        raise ModelError(
            f"{file}: {error.strerror or error}; mend the file or its permissions"
        ) from error


def header_bytes(file: Path) -> bytes:
    """Return the JSON header of a safetensors file: uint64 length, then that many bytes."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            most = min(_MOST_BYTES, file.stat().st_size - _LENGTH_BYTES)
            if not 0 < length <= most:
                raise ModelError(f"{file}: not a safetensors file (header of {length} bytes)")
            return stream.read(length)
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}") from error


def not_zero(tensors: Iterable[StoredTensor]) -> Iterator[StoredTensor]:
    """Yield the tensors that have a byte which is not zero; these few bytes are read."""
    by_file: dict[Path, list[StoredTensor]] = {}
    for tensor in tensors:
        by_file.setdefault(tensor.file, []).append(tensor)
    for file, mine in by_file.items():
        header = header_bytes(file)
        offsets = json.loads(header)
        with file.open("rb") as stream:
            for tensor in mine:
                start, stop = offsets[tensor.name]["data_offsets"]
                stream.seek(_LENGTH_BYTES + len(header) + start)
                if any(stream.read(stop - start)):
                    yield tensor
