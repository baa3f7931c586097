"""PackingFields: an object of quantization_config, whose fields are checked as they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from workers.errors import ModelError

PUBLISHED = "take the file of the published model"
LOADED = (
    "loaded are FP8 (e4m3), AWQ (gemm) of 4 bits, GPTQ of 4 or 8, and compressed-tensors that are"
    " int-quantized, float-quantized or pack-quantized; use such a checkpoint or plain weights"
)


@dataclass(frozen=True)
class PackingFields:
    """An object of a file, at `path`; a field that is missing stands for its `otherwise`."""

    file: Path
    fields: Mapping[str, Any]
    path: str

    def inner(self, name: str, fields: Any) -> "PackingFields":
        """Return the fields of an object inside this one."""
        if not isinstance(fields, dict):
            raise self.wrong(name, "an object", fields)
        return PackingFields(self.file, fields, self._place(name))

    def get(self, name: str, otherwise: Any = None) -> Any:
        return self.fields.get(name, otherwise)

    def one_of(
        self,
        name: str,
        *values: object,
        otherwise: object = None,
        known: Mapping[str, str] = MappingProxyType({}),
    ) -> Any:
        """Return a field that must have one of these values; `known` says what others are."""
        value = self.get(name, otherwise)
        # True == 1 in Python, not in JSON.
        if any(type(value) is type(right) and value == right for right in values):
            return value
        raise self.not_loaded(name, value, known.get(str(value), ""))

    def size(self, name: str, *, otherwise: object = None) -> int:
        """Return a number of inputs, -1 for all."""
        value = self.get(name, otherwise)
        if type(value) is int and (value == -1 or value > 0):
            return value
        raise self.wrong(name, "-1 or positive", value)

    def block(self, name: str) -> tuple[int, int]:
        """Return a block's outputs and inputs."""
        value = self.get(name)
        is_pair = isinstance(value, list) and len(value) == 2
        if is_pair and all(type(size) is int and size > 0 for size in value):
            return value[0], value[1]
        raise self.wrong(name, "two positive numbers", value)

    def not_loaded(self, name: str, value: object, what: str = "") -> ModelError:
        """Return the refusal of a value that is some other packing, or part of one."""
        named = f" ({what})" if what else ""
        return ModelError(f"{self.file}: {self._place(name)} is {value!r}{named}: {LOADED}")

    def wrong(self, name: str, expected: str, value: object) -> ModelError:
        """Return the refusal of a value that no packing has."""
        return ModelError(
            f"{self.file}: {self._place(name)} must be {expected}, not {value!r}; {PUBLISHED}"
        )

    def _place(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name
