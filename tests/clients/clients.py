"""The clients people use, each as it is published, and how its program is run.

A program of `programs/` uses one client as its users do, and prints what that client could do: see
`programs/proof.py`. Clients of one environment are of its pinned versions; Qwen Code and Codex are
programs themselves. Nothing outside this machine is asked: to other addresses there is no way.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import npm, pip

HERE = Path(__file__).parent
NOWHERE = "http://127.0.0.1:9"
NODE_ENVIRONMENTS = ("npm", "codex")


@dataclass(frozen=True)
class Client:
    """One client: its name for readers, its program, and the environment that has it."""

    title: str
    program: str
    environment: str = "clients"


# By their key in the record.
CLIENTS = {
    "openai": Client("openai", "openai_sdk.py"),
    "openai-responses": Client("openai `responses`", "openai_responses.py"),
    "langchain": Client("LangChain `ChatOpenAI`", "langchain_chat.py"),
    "langchain-responses": Client("LangChain `use_responses_api`", "langchain_responses.py"),
    "pydantic-ai": Client("pydantic-ai", "pydantic_ai_agent.py"),
    "openai-agents-responses": Client("openai-agents", "openai_agents_responses.py"),
    "openai-agents": Client("openai-agents `OpenAIChatCompletionsModel`", "openai_agents.py"),
    "instructor": Client("instructor", "instructor_client.py", "instructor"),
    "litellm": Client("litellm `openai/` `hosted_vllm/`", "litellm_completion.py"),
    "anthropic": Client("anthropic", "anthropic_sdk.py", "anthropic"),
    "langchain-anthropic": Client(
        "LangChain `ChatAnthropic`", "langchain_anthropic_chat.py", "anthropic"
    ),
    "qwen-agent": Client("Qwen-Agent", "qwen_agent_assistant.py"),
    "ai-sdk": Client("Vercel AI SDK", "ai_sdk.mjs", "npm"),
    "qwen-code": Client("Qwen Code", "qwen_code.mjs", "npm"),
    "codex": Client("Codex", "codex.mjs", "codex"),
}


@dataclass(frozen=True)
class Outcome:
    """What a program told: its client's version, and the error of each proof, empty if none."""

    version: str
    proofs: list[dict[str, str]]

    @property
    def failures(self) -> str:
        failed = [proof for proof in self.proofs if proof["error"]]
        return "\n".join(f"{p['capability']} by {p['by']}: {p['error']}" for p in failed)

    @property
    def record(self) -> dict[str, Any]:
        """The capabilities in the order shown, each with the client's words for it."""
        proved: dict[str, list[str]] = {}
        for proof in self.proofs:
            proved.setdefault(proof["capability"], []).append(proof["by"])
        return {"version": self.version, "proved": proved}


def run(name: str, url: str, folder: Path, cache: pytest.Cache, **more: str) -> Outcome:
    """Run a client's program with a home of its own; skip if its packages cannot be had."""
    return Outcome(**json.loads(output(CLIENTS[name], url, folder, cache, **more)))


def output(client: Client, url: str, folder: Path, cache: pytest.Cache, **more: str) -> str:
    """Return the last line that a client's program prints."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "any",
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "any",
        "HTTP_PROXY": NOWHERE,
        "HTTPS_PROXY": NOWHERE,
        "NO_PROXY": "127.0.0.1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        _command(client, cache),
        cwd=folder,
        env=environ | more,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout.splitlines()[-1]


def _command(client: Client, cache: pytest.Cache) -> list[str]:
    program = HERE / "programs" / client.program
    if client.environment not in NODE_ENVIRONMENTS:
        lock = HERE / f"pip/{client.environment}.txt"
        return [str(pip.installed(lock, cache.mkdir(f"pip-{client.environment}"))), str(program)]
    if shutil.which("node") is None:
        pytest.skip("node is not installed (Debian: apt-get install nodejs)")
    folder = npm.installed(HERE / client.environment, cache.mkdir(f"clients-{client.environment}"))
    if client.environment == "codex" and not [*folder.glob("node_modules/@openai/codex-*")]:
        pytest.skip("the registry has no native part of Codex for this machine")
    for file in program.parent.glob("*.mjs"):  # beside the packages, where they are looked for
        shutil.copy(file, folder)
    return ["node", str(folder / program.name)]
