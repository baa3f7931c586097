"""The request body of `POST /generate`: its schema, and the frozen value it makes.

None in a value means that the caller said nothing.
"""

from dataclasses import dataclass, field
from typing import Any

from qwenapi.generation.sampling import RequestDefaults
from qwenapi.http.fields import StrictFloat, StrictInteger, StrictString
from qwenapi.http.schemas import LenientSchema

MAX_SEQUENCES = 8
INT32 = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """A prompt and how to answer it; `max_length` counts generated tokens only."""

    prompt: str = field(repr=False)
    max_length: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_return_sequences: int = 1

    def parameters(self, defaults: RequestDefaults, room: int) -> dict[str, Any]:
        """Return the documented echo: all six, the defaults filled in, in this order."""
        return {
            "prompt": self.prompt,
            "max_length": _first(self.max_length, defaults.max_tokens, room),
            "temperature": _first(self.temperature, defaults.temperature),
            "top_p": _first(self.top_p, defaults.top_p),
            "top_k": _first(self.top_k, defaults.top_k),
            "num_return_sequences": self.num_return_sequences,
        }


class GenerateSchema(LenientSchema):
    """`POST /generate`."""

    value_class = GenerateRequest

    prompt = StrictString(None, required=True)
    max_length = StrictInteger(1, INT32)
    temperature = StrictFloat(0, 2)
    top_p = StrictFloat(0, 1)
    top_k = StrictInteger(0, INT32)
    num_return_sequences = StrictInteger(1, MAX_SEQUENCES)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
