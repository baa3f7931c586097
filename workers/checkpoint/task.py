"""Task: what a model is served for, as its folder or a setting says: text, embeddings, or scores.

Of sentence-transformers' files only those are read that say what follows the model itself: modules
in modules.json, each with a folder of its own. What they ask for beyond last-token pooling and
vectors of length 1, or the logits of a yes and a no, is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.checkpoint.files import read_bytes, read_json
from workers.config import Task
from workers.errors import ConfigError, ModelError

MODULES = "modules.json"

# What each architecture can be served for; all others generate text and nothing else.
_TASKS: Mapping[str, tuple[Task, ...]] = {
    "Qwen3ForCausalLM": ("generate", "embed", "rerank"),
    "Qwen3Model": ("embed",),
    "Qwen3ForSequenceClassification": ("rerank",),
}
_BY_MODULE: Mapping[str, Task] = {"Pooling": "embed", "LogitScore": "rerank"}
_OTHER_MODULES = ("Transformer", "Normalize")


def task_of(directory: Path, architecture: str, asked: str) -> Task:
    """Return what a model folder is served for; raise ConfigError if it is not what was asked for,
    ModelError if its modules ask for more than is computed here.
    """
    tasks = _TASKS.get(architecture, ("generate",))
    told = None if asked == "generate" else _task_of_modules(directory)
    wanted = (told or tasks[0]) if asked == "auto" else asked
    for task in tasks:
        if task == wanted:
            return task
    source = ", as modules.json says" if asked == "auto" else ""
    raise ConfigError(
        f"task = {wanted!r}{source}, but {architecture} is served for {' and '.join(tasks)} only;"
        " choose another model, or another --task"
    )


def _task_of_modules(directory: Path) -> Task | None:
    """Return what sentence-transformers' modules make of a model; None where there are none."""
    found: Task | None = None
    for module in _modules(directory / MODULES):
        name = str(module.get("type")).rpartition(".")[2]
        folder = directory / str(module.get("path", ""))
        if name in _BY_MODULE:
            found = _BY_MODULE[name]
            _refuse_other_rule(name, folder / "config.json")
        elif name not in _OTHER_MODULES:
            raise ModelError(
                f"{directory / MODULES}: the module {name} is not computed here; choose a model"
                " without it, or say --task generate"
            )
    return found


def _modules(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        modules = json.loads(read_bytes(file))
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON: {error}; download it again") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{file}: not a list of modules; take the file of the published model")
    return modules


def _refuse_other_rule(name: str, file: Path) -> None:
    """Refuse vectors of other tokens than the last, and scores that are no yes against a no."""
    config = read_json(file, optional=True)
    is_last = config.get("pooling_mode_lasttoken") or config.get("pooling_mode") == "lasttoken"
    if name == "Pooling" and config and not is_last:
        raise ModelError(f"{file}: pools other tokens than the last; choose another model")
    if name == "LogitScore" and config and config.get("false_token_id") is None:
        raise ModelError(f"{file}: scores without a false_token_id; choose another model")
