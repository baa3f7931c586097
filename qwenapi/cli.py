"""The command line: parses flags, loads settings, and runs the command that is named.

Imports only what that command needs.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwenapi import __version__
from qwenapi.commands.ask import add_arguments as add_ask_arguments
from qwenapi.commands.batch import add_arguments as add_batch_arguments
from qwenapi.commands.batch import main as run_batch
from qwenapi.commands.bench.command import add_arguments as add_bench_arguments
from qwenapi.commands.bench.command import main as run_bench
from qwenapi.commands.control import add_arguments as add_control_arguments
from qwenapi.commands.control import main as control
from qwenapi.commands.units import add_arguments as add_units_arguments
from qwenapi.commands.units import main as run_units
from qwenapi.keys.command import add_arguments as add_keys_arguments
from qwenapi.keys.command import main as run_keys
from qwenapi.serving.startup_config import StartupConfig
from qwenapi.settings.flags import FlagParser, add_flags
from qwenapi.settings.run_dir import make_run_dir, model_run_dir, run_dir
from qwenapi.settings.sources import load
from qwenapi.settings.table import Settings, table
from workers.errors import ConfigError, ExitCode, WorkerError

if TYPE_CHECKING:
    from qwenapi.serving.listener import HttpListener
    from qwenapi.serving.process_groups import HttpHalf, ModelHalf
    from qwenapi.settings.profile import Profiles
    from workers.supervisor.reload import Reloader
    from workers.supervisor.supervised_process import Child

DESCRIPTION = "Serve Qwen models behind the HTTP interfaces your callers already use."
CONTROLS = {
    "status": "Say how the processes of a running start are.",
    "reload": "Read the settings of a running start anew and replace its processes, losing no"
    " request.",
    "drain": "Let a running start say that it is not ready, finish what it has, and end.",
}
KEYS = "Add, list and disable the keys that callers present."
BATCH = "Put a file of requests to a running server, and write a file of answers."
BENCH = "Measure a running server or, with --engine, an engine alone: tokens per second, waits."
UNITS = "Put systemd's unit files in place, for this prefix and user."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, return its exit code; a mistake of the operator's is one line on stderr."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _parser().parse_args(words)
    parsed.flags = _without_key(words[1:])
    try:
        code: int = parsed.run(parsed)
    except WorkerError as error:
        print(f"qwenapi: {error}", file=sys.stderr)
        code = error.exit_code
    return code


def serve(parsed: argparse.Namespace) -> int:
    """Run both halves on this machine."""
    settings = _with_fit_model(load(vars(parsed)))
    folder = _own(run_dir(settings, "serve"))
    http = _http_half(parsed, folder, lambda _: folder)
    model = _model_half(parsed, settings, folder)
    return _supervise(
        settings,
        folder,
        [model.children, http.children],
        {"http": http.reloader(1), "model": model.reloader(0)},
        http.listener,
    )


def http(parsed: argparse.Namespace) -> int:
    """Run the HTTP half."""
    settings = load(vars(parsed))
    folder = _own(run_dir(settings, "http"))
    if settings.cluster:
        if settings.model_run_dir:
            raise ConfigError("--cluster and --model-run-dir both say where engines are: set one")
        from qwenapi.cluster.cluster_watch import ClusterWatch

        watch: list[Sequence[Child]] = [[ClusterWatch(settings, folder)]]
        half = _http_half(parsed, folder, lambda _: folder)
    else:
        watch = []
        half = _http_half(parsed, folder, model_run_dir)
    reloaders = {"http": half.reloader(len(watch))}
    return _supervise(settings, folder, [*watch, half.children], reloaders, half.listener)


def model(parsed: argparse.Namespace) -> int:
    """Run the model half."""
    asked = load(vars(parsed))
    settings = _with_fit_model(asked)
    folder = _own(run_dir(asked, "model"))
    half = _model_half(parsed, settings, folder)
    return _supervise(settings, folder, [half.children], {"model": half.reloader(0)})


def check(parsed: argparse.Namespace) -> int:
    """Validate settings and start nothing."""
    startup_config = StartupConfig.read(vars(parsed))
    if parsed.startup_config == "model" and not startup_config.settings.cluster:
        from qwenapi.hub.fetch import with_cached_model

        settings = with_cached_model(startup_config.settings)
        if settings is None:
            model = startup_config.settings.model
            raise ConfigError(f"{model}: not fetched yet, which only a restart does")
        startup_config = replace(startup_config, settings=settings)
        _refuse_unfit(settings, is_running=True)
    if parsed.startup_config:
        sys.stdout.buffer.write(startup_config.to_json())
    else:
        print("settings are valid")
    return ExitCode.OK


def doctor(parsed: argparse.Namespace) -> int:
    """Say before a start whether it would succeed, what fits and what to change."""
    from qwenapi.doctor.report import main as run_doctor

    if not load(vars(parsed)).cluster:
        return run_doctor(parsed)
    from qwenapi.cluster.launcher import survey

    return run_doctor(parsed, survey)


def top(parsed: argparse.Namespace) -> int:
    """Show what a running start is doing, anew each second."""
    from qwenapi.commands.top import main as run_top

    return run_top(parsed)


def ask(parsed: argparse.Namespace) -> int:
    """Put one prompt to a running server and print the answer."""
    from qwenapi.commands.ask import main as run_ask

    return run_ask(parsed)


def _parser() -> argparse.ArgumentParser:
    parser = FlagParser(prog="qwenapi", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"qwenapi {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], what: str) -> FlagParser:
        command: FlagParser = commands.add_parser(name, help=what, description=what)
        command.set_defaults(run=run)
        return command

    for run in (serve, http, model, check):
        command = add(run.__name__, run, run.__doc__ or "")
        add_flags(command, run.__name__)
    command.add_argument("--startup-config", default="", help=argparse.SUPPRESS)  # of check
    for name, what in CONTROLS.items():
        command = add(name, control, what)
        add_control_arguments(command, name)
        command.set_defaults(command=name)
    command = add("doctor", doctor, doctor.__doc__ or "")
    add_flags(command, "serve")
    command.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    command = add("top", top, top.__doc__ or "")
    add_control_arguments(command, "top")
    command.add_argument("--model-run-dir", dest="model_run_dir", default=argparse.SUPPRESS)
    command.add_argument("--once", action="store_true", help="show it once and end")
    command.add_argument(
        "--json", action="store_true", dest="as_json", help="print it once as JSON"
    )
    add_keys_arguments(add("keys", run_keys, KEYS))
    add_units_arguments(add("install-units", run_units, UNITS))
    add_ask_arguments(add("ask", ask, ask.__doc__ or ""))
    add_batch_arguments(add("batch", run_batch, BATCH))
    add_bench_arguments(add("bench", run_bench, BENCH))
    return parser


def _with_fit_model(settings: Settings) -> Settings:
    """Fetch the model first if it is a hub's, and refuse one that does not fit; in a cluster each
    node does so itself.
    """
    from qwenapi.hub.fetch import with_local_model

    if settings.cluster:
        return settings
    fetched = with_local_model(settings, lambda line: print(f"qwenapi: {line}", file=sys.stderr))
    _refuse_unfit(fetched)
    return fetched


def _refuse_unfit(settings: Settings, *, is_running: bool = False) -> None:
    """Refuse at once what would fail once the weights are loaded."""
    from qwenapi.doctor.report import refuse_unfit

    refuse_unfit(settings, is_running=is_running)


def _without_key(flags: Sequence[str]) -> list[str]:
    """Return the flags that child processes may show to everybody: a key goes by environment."""
    kept: list[str] = []
    left = iter(flags)
    for word in left:
        name, equals, value = word.partition("=")
        if name == "--api-key":
            os.environ[table()["api_key"].variable] = value if equals else next(left, "")
        else:
            kept.append(word)
    return kept


def _own(folder: Path) -> Path:
    """Make the run directory and lock it for the rest of this process's life."""
    from workers.supervisor.supervisor import lock_run_dir

    make_run_dir(folder)
    lock_run_dir(folder)
    return folder


def _http_half(
    parsed: argparse.Namespace, folder: Path, engines_dir: Callable[[Settings], Path]
) -> "HttpHalf":
    from qwenapi.serving.process_groups import HttpHalf
    from qwenapi.settings.profile import Profiles

    half = HttpHalf(parsed, folder, engines_dir)
    if names := _alias_table(Profiles(StartupConfig.read(vars(parsed)).profiles)):
        _say(names)
    return half


def _model_half(parsed: argparse.Namespace, settings: Settings, folder: Path) -> "ModelHalf":
    from qwenapi.serving.process_groups import ModelHalf

    if settings.allow_cross_node_tp and not settings.cluster:
        raise ConfigError("--allow-cross-node-tp is for nodes of a cluster: set --cluster as well")
    if settings.cluster and (settings.standby or settings.standby_weights):
        raise ConfigError(
            "--standby keeps a process on this machine, where a cluster's engines do not start:"
            " leave it out"
        )
    return ModelHalf(parsed, settings, folder, _progress())


def _supervise(
    settings: Settings,
    folder: Path,
    groups: "Sequence[Sequence[Child]]",
    reloaders: "Mapping[str, Reloader]",
    listener: "HttpListener | None" = None,
) -> int:
    from workers import logs
    from workers.supervisor.notify import Notifier
    from workers.supervisor.supervisor import Supervisor
    from workers.wire.shared_memory_files import remove_shared_memory

    logs.configure("supervisor", settings.log_level, settings.log_format)
    where = listener.url if listener else folder
    supervisor = Supervisor(
        groups,
        drain_timeout=settings.drain_timeout,
        on_ready=lambda: _say(f"ready: {where}"),
        # From now on nobody waits in vain; a socket of systemd's stays open in its hands.
        on_stop=listener.close if listener else lambda: None,
        reloaders=reloaders,
        notifier=Notifier(),
    )
    code = supervisor.run(folder)
    remove_shared_memory(folder)
    if supervisor.failure:
        print(f"qwenapi: {supervisor.failure}", file=sys.stderr)
    return code


def _alias_table(profiles: "Profiles") -> str:
    """Return one line for each name, and one for callers who give none; nothing for a lone name."""
    names = profiles.model_names
    if len(names) < 2:
        return ""
    answering = {name: profiles.for_model(name) for name in names}
    unnamed = profiles.for_model(None)
    if not unnamed.requires_model:
        answering["(none)"] = unnamed
    width = max(map(len, answering))
    rows = (f"  {name:{width}}  {p.name} as {p.canonical}" for name, p in answering.items())
    return "\n".join(["model names:", *rows])


def _say(line: str) -> None:
    # One write, so that nothing a child prints can come between the line and its end.
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _progress() -> Callable[[str, str, float], None]:
    """Return a reporter of loading: a growing line on a terminal, else a line a quarter."""
    seen: set[tuple[str, int]] = set()

    def report(name: str, what: str, fraction: float) -> None:
        if sys.stderr.isatty():
            end = "\n" if fraction >= 1 else ""
            print(f"\r\x1b[2K{name}: {what} {fraction:4.0%}", end=end, file=sys.stderr, flush=True)
        elif (step := (what, int(fraction * 4))) not in seen:
            seen.add(step)
            print(f"{name}: {what} {fraction:.0%}", file=sys.stderr, flush=True)

    return report
