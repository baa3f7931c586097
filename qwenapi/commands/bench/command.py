"""The command `qwenapi bench`: its flags, and which measurement they ask for.

A server over HTTP, two of them in turns with `--compare`, or with `--engine` an engine in this
process, for which it only reads the flags and shows what `workers.worker.bench` measured.
"""

import argparse
import json
import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from itertools import count
from typing import Any

from qwenapi.commands.bench import plot, tables
from qwenapi.commands.bench.comparison import (
    MEASURES,
    Comparison,
    compare,
    refuse_failures,
    streams,
)
from qwenapi.commands.bench.load import BenchResult, Load, run
from qwenapi.commands.bench.server_facts import ServerError, ServerFacts, ask_facts
from qwenapi.settings.flags import add_flags
from qwenapi.settings.sources import load as load_settings
from qwenapi.settings.table import table as settings_table
from workers.errors import ConfigError

URL = "http://127.0.0.1:8000"
HTTP_FLAGS = (
    "url", "endpoint", "concurrency", "requests", "ignore_eos", "api_key", "extra_body", "seed",
    "plot",
)  # fmt: skip
COMPARE_FLAGS = ("compare_model", "compare_api_key", "compare_extra_body", "rounds")
LEVELS = (1, 8, 32)
ROUNDS = 6
# Seeds of prompts lie so far apart from one measurement to the next.
SEED_STEP = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the command its flags; one left out is absent from the parsed namespace."""
    absent: dict[str, Any] = {"default": argparse.SUPPRESS}
    number: dict[str, Any] = {"type": positive, "metavar": "N", **absent}
    both = parser.add_argument_group("both ways")
    model = "served name (default: the first of /v1/models); with --engine: directory of the model"
    both.add_argument("--model", help=model, **absent)
    both.add_argument("--prompt-tokens", help="(default: 128; with --engine: 1024)", **number)
    both.add_argument("--max-tokens", help="(default: 64; with --engine: 128)", **number)
    both.add_argument("--temperature", type=float, help="(default: 0)", **absent)
    both.add_argument("--json", metavar="FILE", help="also write the results here", **absent)
    http = parser.add_argument_group("a server, over HTTP")
    http.add_argument("--url", help=f"the server, without /v1 (default: {URL})", **absent)
    http.add_argument("--endpoint", choices=("completions", "chat"), **absent)
    http.add_argument("--concurrency", nargs="+", help="(default: 1 8 32)", **number)
    http.add_argument("--requests", help="per level (default: twice its streams)", **number)
    eos: dict[str, Any] = {
        "dest": "ignore_eos",
        "action": "store_false",
        "help": "for servers without it",
    }
    http.add_argument("--no-ignore-eos", **eos, **absent)
    http.add_argument("--api-key", help="sent as a bearer token", **absent)
    more: dict[str, Any] = {"type": json_object, "metavar": "JSON", **absent}
    http.add_argument("--extra-body", help="more fields of every request, as an object", **more)
    seed = "prompts follow from it (default: another each time, so that no cache knows them)"
    http.add_argument("--seed", type=int, metavar="N", help=seed, **absent)
    plotted = "draw throughput against time per output token, as SVG"
    http.add_argument("--plot", metavar="FILE", help=plotted, **absent)
    _add_compare_arguments(parser, number, more)
    engine = parser.add_argument_group("an engine alone, in this process")
    engine.add_argument("--engine", action="store_true", help="measure this way")
    engine.add_argument("--streams", nargs="+", help="(default: 1 8 64)", **number)
    add_flags(parser, "bench")


def _add_compare_arguments(
    parser: argparse.ArgumentParser, number: dict[str, Any], more: dict[str, Any]
) -> None:
    absent: dict[str, Any] = {"default": argparse.SUPPRESS}
    group = parser.add_argument_group("two servers, in turns")
    compared = "another server, which gets the same load in turns with the first"
    group.add_argument("--compare", metavar="URL", help=compared, **absent)
    model = "its served name (default: the first of its /v1/models)"
    group.add_argument("--compare-model", metavar="MODEL", help=model, **absent)
    group.add_argument("--compare-api-key", metavar="API_KEY", help="its key", **absent)
    extra = "more fields of its requests (default: those of --extra-body)"
    group.add_argument("--compare-extra-body", help=extra, **more)
    group.add_argument("--rounds", help=f"of each level, 2 or more (default: {ROUNDS})", **number)


def main(parsed: argparse.Namespace) -> int:
    """Measure servers or an engine, print the table; return 1 if a request failed or a server is
    not there.
    """
    given = vars(parsed)
    if parsed.engine:
        http_flags = (*HTTP_FLAGS, "compare", *COMPARE_FLAGS)
        _refuse(given, http_flags, "asks a server over HTTP; with --engine leave it out")
        return _measure_engine(given)
    _refuse(given, ("streams", *_engine_settings()), "is for an engine alone; add --engine")
    if "compare" not in given:
        _refuse(given, COMPARE_FLAGS, "is for two servers; add --compare URL")
    try:
        return _compare_servers(given) if "compare" in given else _measure_server(given)
    except ServerError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1


def _measure_server(given: dict[str, Any]) -> int:
    from rich.console import Console

    facts, load = _server(Load(**({"url": URL, "model": ""} | _fields(Load, given))))
    seeds = _seeds(given)
    console = Console(highlight=False)
    for line in (str(facts), tables.conditions(load), tables.client()):
        console.print(line, soft_wrap=True)
    results = [
        run(load, concurrency, given.get("requests", 2 * concurrency), next(seeds))
        for concurrency in given.get("concurrency", LEVELS)
    ]
    console.print(tables.table(results))
    for error in sorted({error for result in results for error in result.errors}):
        console.print(f"failed: {error}")
    _plot(given, load, [(facts, [plot.point(result) for result in results])])
    _write(given, {"server": asdict(facts), "load": _shown(load), "results": _dicts(results)})
    return int(any(result.num_failed for result in results))


def _compare_servers(given: dict[str, Any]) -> int:
    from rich.console import Console

    if (num_rounds := given.get("rounds", ROUNDS)) < 2:
        raise ConfigError("--rounds 1 gives no interval: two or more do")
    first = Load(**({"url": URL, "model": ""} | _fields(Load, given)))
    other = replace(
        first,
        url=given["compare"],
        model=given.get("compare_model", ""),
        api_key=given.get("compare_api_key", ""),
        extra_body=given.get("compare_extra_body", first.extra_body),
    )
    (facts_a, a), (facts_b, b) = _server(first), _server(other)
    levels, seeds = given.get("concurrency", LEVELS), _seeds(given)
    console = Console(highlight=False)
    turns = f"{num_rounds} rounds: A B, B A, and so on, after one that is not counted"
    lines = (f"A: {facts_a}", f"B: {facts_b}", tables.conditions(a), turns, tables.client())
    for line in lines:
        console.print(line, soft_wrap=True)
    comparisons: list[Comparison] = []
    try:
        for load in (a, b):
            refuse_failures(load, run(load, max(levels), max(levels), next(seeds)))
        for level in levels:
            num_requests = given.get("requests", 2 * level)
            rounds = []
            for each in compare(a, b, level, num_requests, num_rounds, seeds):
                rounds.append(each)
                _say_round(level, len(rounds), num_rounds, each.a, each.b)
            comparisons.append(Comparison(level, tuple(rounds)))
    finally:  # what is known when a server fails is worth knowing
        if comparisons:
            console.print(tables.comparison_table(comparisons))
            console.print(tables.client(), soft_wrap=True)
            lines_of_plot = [
                (facts, [plot.mean_point(comparison, side) for comparison in comparisons])
                for side, facts in enumerate((facts_a, facts_b))
            ]
            _plot(given, a, lines_of_plot)
        report = {"servers": {"a": asdict(facts_a), "b": asdict(facts_b)}, "rounds": num_rounds}
        loads = {"loads": {"a": _shown(a), "b": _shown(b)}}
        _write(given, report | loads | {"results": [_as_json(each) for each in comparisons]})
    return 0


def _server(load: Load) -> tuple[ServerFacts, Load]:
    """Return what a server is, and the load with the model that it is asked for."""
    facts = ask_facts(load.url, load.model, load.api_key)
    return facts, replace(load, model=facts.model)


def _seeds(given: dict[str, Any]) -> "count[int]":
    return count(given.get("seed", secrets.randbits(32)) * 1000 * SEED_STEP, SEED_STEP)


def _say_round(level: int, number: int, of: int, a: BenchResult, b: BenchResult) -> None:
    rates = f"A {a.tokens_per_second:.1f}, B {b.tokens_per_second:.1f} tokens/s"
    print(f"{streams(level)}, round {number} of {of}: {rates}", file=sys.stderr)


def _plot(
    given: dict[str, Any],
    load: Load,
    servers: Sequence[tuple[ServerFacts, Sequence[plot.Point]]],
) -> None:
    if "plot" not in given:
        return
    lines = [plot.Line(_title(facts), tuple(points)) for facts, points in servers]
    drawn = plot.draw(lines, tables.conditions(load))
    with open(given["plot"], "w", encoding="utf-8") as out:
        out.write(drawn)


def _title(facts: ServerFacts) -> str:
    return " ".join(filter(None, (facts.program, facts.version))) + f": {facts.model}"


def _as_json(comparison: Comparison) -> dict[str, Any]:
    figures = {}
    for measure in MEASURES:
        ratio = comparison.ratio(measure.of)
        a, b = comparison.means(measure.of)
        figures[measure.name] = {"a": a, "b": b, "ratio": ratio and asdict(ratio)}
    return asdict(comparison) | {"figures": figures}


def _measure_engine(given: dict[str, Any]) -> int:
    from rich.console import Console

    from qwenapi.hub.fetch import with_local_model
    from workers.worker import bench

    names = given.keys() & {"model", *_engine_settings()}
    asked = load_settings({name: given[name] for name in names})
    config = with_local_model(asked, lambda line: print(line, file=sys.stderr)).engine_config()
    if config.stub:
        raise ConfigError("stub is set, and --engine measures a real engine: unset it")
    engine = bench.load(config, lambda what, fraction: None)
    facts = bench.conditions(config, engine.card)
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    results = []
    for level in given.get("streams", (1, 8, 64)):
        workload = bench.Workload(**_fields(bench.Workload, given) | {"streams": level})
        results.append(bench.measure(engine, workload))
    console.print(tables.engine_table(results))
    _write(given, {"conditions": facts, "results": _dicts(results)})
    return 0


def _engine_settings() -> list[str]:
    return [row.name for row in settings_table().values() if row.scope == "model"]


def _refuse(given: dict[str, Any], names: Iterable[str], why: str) -> None:
    for name in names:
        if name in given:
            flag = "no_ignore_eos" if name == "ignore_eos" else name
            raise ConfigError(f"--{flag.replace('_', '-')} {why}")


def _fields(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given for fields of a dataclass."""
    return {field.name: given[field.name] for field in fields(kind) if field.name in given}


def _dicts(results: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(result) for result in results]


def _shown(load: Load) -> dict[str, Any]:
    return asdict(load) | {"api_key": ""}


def _write(given: dict[str, Any], report: dict[str, Any]) -> None:
    if "json" in given:
        with open(given["json"], "w", encoding="utf-8") as out:
            json.dump(report, out)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
