"""Proofs: what a program shows its client to do, told to the test as one line of JSON.

For programs that run where only their client is installed; knows the standard library alone. The
server's address and key are in OPENAI_BASE_URL and OPENAI_API_KEY, or ANTHROPIC_…, as
clients want them.
"""

import importlib.metadata
import json
import traceback
from collections.abc import Callable
from typing import NamedTuple

MODEL = "qwen-demo"
QUESTION = "What is the weather in Paris?"
ANSWER = "It is sunny in Paris, 21 degrees."
PERSON = "Return JSON with name and age: Alice is 30 years old"


class Proof(NamedTuple):
    capability: str
    by: str  # the client's own word for it
    show: Callable[[], None]


_proofs: list[Proof] = []


def proves(capability: str, by: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Let a function show a capability: it returns if the client did it, and raises if not."""

    def register(show: Callable[[], None]) -> Callable[[], None]:
        _proofs.append(Proof(capability, by, show))
        return show

    return register


def weather(city: str) -> str:
    """Return what the tool of all programs says."""
    assert city == "Paris", city
    return json.dumps({"weather": "sunny", "temperature": 21})


def tell(distribution: str) -> None:
    """Run all that was registered, and print the client's version and what became of each."""
    told = [
        {"capability": proof.capability, "by": proof.by, "error": _error(proof.show)}
        for proof in _proofs
    ]
    print(json.dumps({"version": importlib.metadata.version(distribution), "proofs": told}))


def _error(show: Callable[[], None]) -> str:
    try:
        show()
    except Exception:
        return traceback.format_exc()
    return ""
