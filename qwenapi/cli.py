"""The command line: parses, loads settings, and runs what the command names; imports only what that
needs.
"""

import argparse
import ipaddress
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from qwenapi import __version__
from qwenapi.ask import add_arguments as add_ask_arguments
from qwenapi.bench import add_arguments as add_bench_arguments
from qwenapi.bench import main as run_bench
from qwenapi.config import load, load_profiles
from qwenapi.flags import FlagParser, add_flags
from qwenapi.run_dir import make_run_dir, model_run_dir, run_dir
from qwenapi.settings import Settings
from workers.errors import ExitCode, WorkerError
from workers.supervisor import Child

DESCRIPTION = "Serve Qwen models behind the HTTP interfaces your callers already use."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, return its exit code; a mistake of the operator's is one line on stderr."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except WorkerError as error:
        print(f"qwenapi: {error}", file=sys.stderr)
        code = error.exit_code
    return code


def serve(parsed: argparse.Namespace) -> int:
    """Run both halves on this machine."""
    settings = load(vars(parsed))
    _check_model(settings.engine_config().model)
    folder = _own(run_dir(settings, "serve"))
    http, url = _http(parsed, settings, folder)
    return _supervise(settings, folder, [_engines(settings, folder), [http]], f"ready: {url}")


def http(parsed: argparse.Namespace) -> int:
    """Run the HTTP half."""
    settings = load(vars(parsed))
    folder = _own(run_dir(settings, "http"))
    child, url = _http(parsed, settings, model_run_dir(settings))
    return _supervise(settings, folder, [[child]], f"ready: {url}")


def model(parsed: argparse.Namespace) -> int:
    """Run the model half."""
    settings = load(vars(parsed))
    folder = _own(run_dir(settings, "model"))
    return _supervise(settings, folder, [_engines(settings, folder)], f"ready: {folder}")


def check(parsed: argparse.Namespace) -> int:
    """Validate settings and start nothing."""
    load_profiles(load(vars(parsed)), vars(parsed))
    print("settings are valid")
    return ExitCode.OK


def bench(parsed: argparse.Namespace) -> int:
    """Measure a running server: tokens per second, time to first token, gaps between tokens."""
    return run_bench(parsed)


def ask(parsed: argparse.Namespace) -> int:
    """Put one prompt to a running server and print the answer."""
    from qwenapi.ask import main as run_ask

    return run_ask(parsed)


def _parser() -> argparse.ArgumentParser:
    parser = FlagParser(prog="qwenapi", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"qwenapi {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, run in {"serve": serve, "http": http, "model": model, "check": check}.items():
        command = commands.add_parser(
            name, help=(run.__doc__ or "").strip(), description=run.__doc__
        )
        add_flags(command, name)
        command.set_defaults(run=run)
    question = commands.add_parser("ask", help=ask.__doc__, description=ask.__doc__)
    add_ask_arguments(question)
    question.set_defaults(run=ask)
    measure = commands.add_parser("bench", help=bench.__doc__, description=bench.__doc__)
    add_bench_arguments(measure)
    measure.set_defaults(run=bench)
    return parser


def _check_model(directory: str) -> None:
    """Refuse at once what would fail once the weights are loaded."""
    from qwenapi.tokenizers import load_tokenizer
    from workers.checkpoint import Checkpoint

    checkpoint = Checkpoint.at(directory)
    checkpoint.check_config()
    load_tokenizer(checkpoint.directory)


def _own(folder: Path) -> Path:
    """Make the run directory and lock it for the rest of this process's life."""
    from workers.supervisor import lock_run_dir

    make_run_dir(folder)
    lock_run_dir(folder)
    return folder


def _http(parsed: argparse.Namespace, settings: Settings, engines_dir: Path) -> tuple[Child, str]:
    from qwenapi.http_child import HttpChild, listen

    profiles = load_profiles(settings, vars(parsed))
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    if not ipaddress.ip_address(host).is_loopback:
        print(
            f"qwenapi: {host} is open to every machine that reaches it: no keys are asked for",
            file=sys.stderr,
        )
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return HttpChild(replace(settings, port=port), profiles, engines_dir, listener), url


def _engines(settings: Settings, folder: Path) -> list[Child]:
    from workers.cores import physical_cores
    from workers.launcher import EngineChild
    from workers.page import ENGINE_LAYOUT, SharedPage, page_path
    from workers.report import WorkerSpec

    count = settings.data_parallel_size
    page = SharedPage.create(page_path(folder, ENGINE_LAYOUT), ENGINE_LAYOUT, count)
    # More OpenMP threads than cores fight for them; several engines share what there is.
    threads = settings.threads or max(1, physical_cores() // count)
    config = replace(settings.engine_config(), threads=threads)
    return [
        EngineChild(config, WorkerSpec(i, folder, page.path), page, _progress())
        for i in range(count)
    ]


def _supervise(
    settings: Settings, folder: Path, groups: Sequence[Sequence[Child]], ready: str
) -> int:
    from workers import logs
    from workers.page import ENGINE_LAYOUT, page_path
    from workers.supervisor import Supervisor

    logs.configure("supervisor", settings.log_level, settings.log_format)
    supervisor = Supervisor(
        groups, drain_timeout=settings.drain_timeout, on_ready=lambda: _say(ready)
    )
    code = supervisor.run()
    page_path(folder, ENGINE_LAYOUT).unlink(missing_ok=True)
    if supervisor.failure:
        print(f"qwenapi: {supervisor.failure}", file=sys.stderr)
    return code


def _say(line: str) -> None:
    # One write, so that nothing a child prints can come between the line and its end.
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _progress() -> Callable[[str, str, float], None]:
    """Return a reporter of loading: one growing line on a terminal, a line for each quarter
    elsewhere.
    """
    seen: set[tuple[str, int]] = set()

    def report(name: str, what: str, fraction: float) -> None:
        if sys.stderr.isatty():
            end = "\n" if fraction >= 1 else ""
            print(f"\r\x1b[2K{name}: {what} {fraction:4.0%}", end=end, file=sys.stderr, flush=True)
        elif (step := (what, int(fraction * 4))) not in seen:
            seen.add(step)
            print(f"{name}: {what} {fraction:.0%}", file=sys.stderr, flush=True)

    return report
