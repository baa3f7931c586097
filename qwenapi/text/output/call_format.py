"""The two ways in which Qwen models write calls, and which one a chat template teaches."""

from collections.abc import Mapping
from typing import Any, Literal

CallFormat = Literal["hermes", "xml"]
Tools = Mapping[str, Mapping[str, Any]]
"""Name of a function → JSON schema of its parameters; `{}` if it has none."""

CALL = "<tool_call>"
END_OF_CALL = "</tool_call>"
FUNCTION = "<function="


def choose_format(chat_template: str) -> CallFormat | None:
    """Return the format that the template's text shows to the model, None if it shows none."""
    if FUNCTION in chat_template:
        return "xml"
    return "hermes" if CALL in chat_template else None
