"""ServerFacts: what a server under load is, as it says itself: its kind, version and model."""

import http.client
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from qwenapi.commands.bench.load import fetch_json

# Where servers say their version: ours and vLLM, llama.cpp.
VERSIONS = (("/version", "version"), ("/props", "build_info"))
FAILURES = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError)


class ServerError(Exception):
    """A server that cannot be measured: gone, or its answers are not what was asked for."""


@dataclass(frozen=True)
class ServerFacts:
    """Where a server is, the model that is asked for, and what is known of the program; `version`
    may be empty.
    """

    url: str
    model: str
    program: str
    version: str

    def __str__(self) -> str:
        program = " ".join(filter(None, (self.program, self.version or "of unknown version")))
        return f"{self.url}, {program}, model {self.model}"


def ask_facts(url: str, model: str, api_key: str) -> ServerFacts:
    """Ask a server what it is; `model` may be empty, for the first that it serves."""
    found: dict[str, Any] = {"id": model}
    try:
        models: list[dict[str, Any]] = fetch_json(url, "/v1/models", api_key)["data"]
        found = next((each for each in models if each["id"] == model), models[0])
    except FAILURES as error:
        if isinstance(error, OSError) or not model:
            raise ServerError(
                f"{url} does not say which models it serves: {type(error).__name__}: {error}"
            ) from error
    program = str(found.get("owned_by", "a server"))
    return ServerFacts(url, model or str(found["id"]), program, _version(url, api_key))


def _version(url: str, api_key: str) -> str:
    for path, field in VERSIONS:
        with suppress(*FAILURES):
            return str(fetch_json(url, path, api_key)[field])
    return ""
