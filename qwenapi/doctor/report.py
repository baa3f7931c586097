"""The doctor's report: all checks, for a person or as JSON; some of them before each start."""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from typing import Any

from qwenapi.doctor.check import Check, Outcome, failure, refused
from qwenapi.doctor.cluster import check_cluster
from qwenapi.doctor.machine import check_machine
from qwenapi.doctor.memory import check_memory, find_room
from qwenapi.doctor.model import check_config, check_tokenizer, check_weights, not_fetched
from qwenapi.hub.fetch import with_cached_model
from qwenapi.settings.sources import load, load_profiles
from qwenapi.settings.table import Settings
from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ConfigError, ExitCode

_WIDTH = 14


def main(
    parsed: argparse.Namespace, survey: Callable[[Settings], dict[str, Any]] | None = None
) -> int:
    """Print every check; the exit code is 78 if one failed. `survey` asks the nodes of a cluster,
    where engines are to run instead of here.
    """
    settings = load(vars(parsed))
    profiles = [profile.name for profile in load_profiles(settings, vars(parsed))]
    model = check_model(settings) if survey is None else _check_cluster(settings, survey)
    checks = list(chain(model, check_machine(settings, profiles)))
    worst = max((check.outcome for check in checks), key=list(Outcome).index)
    if parsed.as_json:
        print(json.dumps({"outcome": worst, "checks": [asdict(check) for check in checks]}))
    else:
        print("\n".join(map(_lines, checks)))
    return ExitCode.CONFIG if worst is Outcome.FAILURE else ExitCode.OK


def _check_cluster(
    settings: Settings, survey: Callable[[Settings], dict[str, Any]]
) -> Iterator[Check]:
    try:
        yield from check_cluster(survey(settings), settings)
    except ConfigError as error:
        yield refused("cluster", error)


def refuse_unfit(
    settings: Settings, *, is_running: bool = False, num_local_ranks: int | None = None
) -> None:
    """Raise ConfigError with the words of the first check of the model that fails.

    `is_running`: the engines to be replaced hold the memory that their successors will have.
    """
    with_memory = _is_cpu(settings) and not is_running
    for check in check_model(settings, with_memory=with_memory, num_local_ranks=num_local_ranks):
        if check.outcome is Outcome.FAILURE:
            raise ConfigError(check.sentence)


def _is_cpu(settings: Settings) -> bool:
    """Return whether engines surely run on CPUs. Of GPUs the driver knows less than the engine, as
    parts of one, their order, or a torch without CUDA: there the engine itself may refuse.
    """
    return settings.device != "cuda" and not find_room(settings, 0).is_gpu


def check_model(
    settings: Settings, *, with_memory: bool = True, num_local_ranks: int | None = None
) -> Iterator[Check]:
    """Look at the model's files, then whether they fit; the first failure is the last check.

    `num_local_ranks` of an engine are to be on this machine; None: all.
    """
    try:
        local = with_cached_model(settings)
        if local is None:
            yield not_fetched(settings)
            return
        checkpoint = Checkpoint.of(local.engine_config())
        yield check_config(checkpoint)
        if not settings.stub:
            yield check_weights(checkpoint, settings.quantization)
            if with_memory and settings.deterministic and not _is_cpu(settings):
                checkpoint.check_deterministic_on_gpu()
        yield from check_tokenizer(checkpoint)
    except ConfigError as error:
        yield refused("model", error)
        return
    except OSError as error:
        # A loop of links, a disk that fails: whatever the system has against a file it names.
        remedy = "mend the file or its permissions"
        yield failure("model", str(error.filename), str(error.strerror), remedy)
        return
    if with_memory and not settings.stub:
        weights, of = checkpoint.weights, checkpoint.config
        yield from check_memory(settings, weights, of, num_local_ranks)


def _lines(check: Check) -> str:
    line = f"{check.outcome:<8} {check.name:<{_WIDTH}} {check.what}"
    if check.why:
        line += f": {check.why}"
    return line + (f"\n{'':{_WIDTH + 10}}→ {check.remedy}" if check.remedy else "")
