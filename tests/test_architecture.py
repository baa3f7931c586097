"""The walls of the house: who may import whom, what nobody may call, how long things may be.

Read from the syntax tree, so that no rule needs its module to be importable. Exceptions are listed
at the top with their reason; a new one is a decision, not an edit.
"""

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("qwenapi", "workers")

# Every room, and the rooms and single modules it may import besides itself. Each line names only
# what stands on lines above it, so that there is no circle; a new room is a new line.
ROOMS: dict[str, str] = {
    "workers.errors": "",
    "workers.config": "",
    "workers.cgroups": "",
    "workers.cpu_cores": "workers.cgroups",
    "workers.memory": "workers.cgroups",
    "workers.cpu_times": "",
    "workers.logs": "",
    "workers.fairness": "",
    "workers.parent_death": "",
    "workers.checkpoint": "workers.errors workers.config",
    "workers.wire": "workers.errors",
    "workers.grammar": "workers.wire",
    "workers.engine_core": "workers.wire workers.grammar",
    "workers.model.layout": "",
    "workers.model.kernels": "workers.model.layout",
    "workers.model.native": "workers.model.layout",
    "workers.model.parallel": "workers.errors workers.checkpoint workers.model.native",
    "workers.model.quantization": """
        workers.errors workers.checkpoint workers.model.layout workers.model.kernels
        workers.model.native workers.model.parallel""",
    "workers.model.linear": """
        workers.model.layout workers.model.kernels workers.model.native
        workers.model.quantization""",
    "workers.model.attention": """
        workers.errors workers.model.layout workers.model.kernels workers.model.native
        workers.model.linear""",
    "workers.model.layers": """
        workers.model.layout workers.model.kernels workers.model.native workers.model.parallel
        workers.model.linear workers.model.attention""",
    "workers.model": """
        workers.errors workers.config workers.memory workers.checkpoint workers.model.layout
        workers.model.native workers.model.parallel workers.model.quantization
        workers.model.linear workers.model.attention workers.model.layers""",
    "workers.engine": """
        workers.errors workers.config workers.cpu_cores workers.cpu_times workers.checkpoint
        workers.fairness workers.wire workers.grammar workers.engine_core workers.model
        workers.model.layout workers.model.kernels workers.model.native workers.model.parallel
        workers.model.quantization workers.model.attention""",
    "workers.worker": """
        workers.errors workers.config workers.memory workers.checkpoint workers.logs
        workers.fairness workers.parent_death workers.wire workers.grammar workers.engine_core
        workers.engine""",
    "workers.supervisor": "workers.errors workers.config workers.wire workers.worker",
    "qwenapi.errors": "",
    "qwenapi.greenlets": "",
    "qwenapi.text": "",
    "qwenapi.conversations": "workers.errors workers.wire",
    "qwenapi.batches": "qwenapi.errors qwenapi.greenlets qwenapi.conversations",
    "qwenapi.web": "qwenapi.errors",
    "qwenapi.http": "qwenapi.errors qwenapi.text",
    "qwenapi.settings": "qwenapi.errors workers.errors workers.checkpoint workers.config",
    "qwenapi.observability": "qwenapi.settings workers.errors",
    "qwenapi.keys": "qwenapi.errors qwenapi.settings workers.errors workers.wire",
    "qwenapi.metrics": "qwenapi.settings workers.errors workers.wire",
    "qwenapi.images": """
        qwenapi.errors qwenapi.greenlets qwenapi.settings workers.checkpoint workers.wire""",
    "qwenapi.engines": """
        qwenapi.errors qwenapi.greenlets qwenapi.settings workers.errors workers.wire""",
    "qwenapi.generation": """
        qwenapi.errors qwenapi.greenlets qwenapi.settings qwenapi.text qwenapi.keys qwenapi.metrics
        qwenapi.images qwenapi.engines workers.errors workers.checkpoint workers.wire""",
    "qwenapi.shared_fields": """
        qwenapi.http qwenapi.text qwenapi.images qwenapi.generation workers.wire""",
    "qwenapi.request_context": """
        qwenapi.errors qwenapi.settings qwenapi.text qwenapi.http qwenapi.keys qwenapi.metrics
        qwenapi.engines qwenapi.conversations qwenapi.batches qwenapi.observability
        qwenapi.images qwenapi.generation workers.wire""",
    "qwenapi.api": """
        qwenapi.errors qwenapi.greenlets qwenapi.settings qwenapi.text qwenapi.http qwenapi.web
        qwenapi.images qwenapi.metrics qwenapi.engines qwenapi.conversations qwenapi.batches
        qwenapi.generation qwenapi.shared_fields qwenapi.request_context workers.wire""",
    "qwenapi.openapi": """
        qwenapi.settings qwenapi.http qwenapi.web qwenapi.request_context qwenapi.api""",
    "qwenapi.app": """
        qwenapi.errors qwenapi.settings qwenapi.http qwenapi.web qwenapi.observability
        qwenapi.engines qwenapi.request_context qwenapi.api qwenapi.openapi""",
    "qwenapi.hub": "qwenapi.settings workers.errors workers.checkpoint",
    "qwenapi.doctor": """
        qwenapi.settings qwenapi.hub qwenapi.text qwenapi.observability qwenapi.metrics
        qwenapi.generation workers.errors workers.memory workers.checkpoint workers.wire""",
    "qwenapi.cluster": """
        qwenapi.settings qwenapi.hub qwenapi.doctor workers.errors workers.config workers.logs
        workers.parent_death workers.wire workers.worker workers.supervisor""",
    "qwenapi.serving": """
        qwenapi.settings qwenapi.hub qwenapi.cluster qwenapi.greenlets qwenapi.observability
        qwenapi.keys qwenapi.metrics qwenapi.engines qwenapi.conversations qwenapi.batches
        qwenapi.generation qwenapi.request_context qwenapi.app
        workers.errors workers.cpu_cores workers.parent_death workers.wire workers.worker
        workers.supervisor""",
    "qwenapi.commands": """
        qwenapi.batches qwenapi.settings qwenapi.hub qwenapi.metrics workers.errors workers.wire
        workers.worker""",
    "qwenapi.cli": """
        qwenapi.settings qwenapi.keys qwenapi.hub qwenapi.doctor qwenapi.cluster qwenapi.serving
        qwenapi.commands
        workers.errors workers.logs workers.wire workers.supervisor""",
    "qwenapi.__main__": "qwenapi.cli",
}
# Of the model half, the HTTP half's processes know the wire and what a model folder says, and the
# machine's memory. Only who starts or measures processes knows more.
SHARED_WITH_HTTP = {
    *("workers.wire", "workers.checkpoint", "workers.config", "workers.errors", "workers.memory")
}
PROCESS_ROOMS = {"qwenapi.cli", "qwenapi.cluster", "qwenapi.serving", "qwenapi.commands"}
NOT_FOR_WORKERS = {"qwenapi", "flask", "gevent", "gunicorn", "marshmallow", "werkzeug"}
HEAVY = {"torch", "transformers", "accelerate", "triton"}
HEAVY_PLACES = ("workers/engine/", "workers/model/")
PURE_NAMES = {"schemas.py", "render.py", "params.py"}
NOT_PURE = {"flask", "gevent", "gunicorn", "requests", "socket", "subprocess", "threading"}
NO_FLASK_PLACES = ("qwenapi/text/", "qwenapi/metrics/")
# Ray ends the processes that use it when it sees fit, and is an extra.
RAY_PLACE = "qwenapi/cluster/ray_cluster.py"
UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "os.system", "os.popen"}
IMPORT_TIME_WORK = re.compile(
    r"os\.environ|os\.getenv|\.patch_all|socket\.socket$|socket\.create|subprocess\.|threading\.Thread"
    r"|signal\.signal|^open$|\.read_text$|\.read_bytes$|\.mkdir$|time\.sleep"
)

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FIRST_LINE = 95  # characters of a module's docstring
LONG_FILES: dict[str, str] = {}  # path: why it is better in one piece
LONG_FUNCTIONS: dict[str, str] = {}  # path:name: why it is better in one piece


@dataclass(frozen=True)
class Import:
    """One imported module, dotted and absolute, and whether importing the file imports it."""

    module: str
    is_at_import_time: bool
    line: int

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


@cache
def sources() -> dict[str, ast.Module]:
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {
        file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
        for file in files
    }


def offences(found: Iterator[str]) -> None:
    listed = list(found)
    assert not listed, "\n" + "\n".join(listed)


def imports(path: str) -> Iterator[Import]:
    for node, is_lazy in walk(sources()[path]):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(name.name, not is_lazy, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(path, node)
            for name in node.names:
                yield Import(f"{base}.{name.name}", not is_lazy, node.lineno)


def absolute(path: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = Path(path).parent.parts
    parts = package[: len(package) - node.level + 1]
    return ".".join((*parts, *filter(None, [node.module])))


def walk(tree: ast.AST, is_lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node, and whether it runs later than the import of its file."""
    for node in ast.iter_child_nodes(tree):
        yield node, is_lazy
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for now in (*node.decorator_list, *node.args.defaults, *node.args.kw_defaults):
                if now is not None:
                    yield now, is_lazy
                    yield from walk(now, is_lazy)
            for later in node.body:
                yield later, True
                yield from walk(later, True)
        else:
            inner = isinstance(node, ast.Lambda) or is_type_checking(node) or is_main(node)
            yield from walk(node, is_lazy or inner)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def is_main(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def room_of(module: str) -> str:
    """Return the room or single module of the table that a dotted name lies in."""
    parts = module.split(".")
    for length in (3, 2):
        name = ".".join(parts[:length])
        if name in ROOMS and len(parts) >= length:
            return name
    return module


def modules() -> Iterator[tuple[str, str]]:
    """Yield each file's path and the room it lies in; a package's own `__init__` has none."""
    for path in sources():
        module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if module not in PACKAGES:
            yield path, room_of(module)


def test_every_file_lies_in_a_room():
    offences(f"{path} lies in no room of ROOMS" for path, room in modules() if room not in ROOMS)


def test_rooms_import_only_what_the_table_allows():
    def found() -> Iterator[str]:
        for path, room in modules():
            allowed = {room, *PACKAGES, *ROOMS.get(room, "").split()}
            for item in imports(path):
                if item.top in PACKAGES and not is_allowed(item.module, allowed):
                    yield f"{path}:{item.line} imports {item.module}"

    offences(found())


def is_allowed(module: str, allowed: set[str]) -> bool:
    # `from qwenapi import __version__` names what is no module.
    return room_of(module) in allowed or module == "qwenapi.__version__"


def test_the_table_of_rooms_has_no_circle():
    def found() -> Iterator[str]:
        above: set[str] = set()
        for room, allowed in ROOMS.items():
            for other in allowed.split():
                if other not in above:
                    yield f"{room} may import {other}, which is no line above it"
            above.add(room)

    offences(found())


def test_the_table_of_rooms_allows_nothing_unused():
    def found() -> Iterator[str]:
        used = {(room, room_of(item.module)) for path, room in modules() for item in imports(path)}
        for room, allowed in ROOMS.items():
            for other in allowed.split():
                if (room, other) not in used:
                    yield f"{room} never imports {other}"

    offences(found())


def test_http_half_knows_only_the_shared_modules_of_workers():
    offences(
        f"{room} may import {other}"
        for room, allowed in ROOMS.items()
        if room.startswith("qwenapi.") and room not in PROCESS_ROOMS
        for other in allowed.split()
        if other.startswith("workers.") and other not in SHARED_WITH_HTTP
    )


def test_no_two_files_import_each_other():
    graph = {path: set(files_imported(path)) for path in sources()}

    def reaches(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(graph[start])
        while left:
            path = left.pop()
            if path not in seen:
                seen.add(path)
                left += graph[path]
        return seen

    offences(f"{path} imports itself in the end" for path in graph if path in reaches(path))


def files_imported(path: str) -> Iterator[str]:
    for item in imports(path):
        for name in (item.module, item.module.rpartition(".")[0]):
            file = name.replace(".", "/") + ".py"
            if file in sources() and file != path:
                yield file


def test_no_class_has_the_name_of_another():
    names: dict[str, str] = {}

    def found() -> Iterator[str]:
        for path, tree in sources().items():
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and names.setdefault(node.name, path) != path:
                    yield f"{path}:{node.lineno} {node.name} is also in {names[node.name]}"

    offences(found())


def test_workers_know_nothing_of_http():
    offences(
        f"{path}:{item.line} imports {item.module}"
        for path in sources()
        if path.startswith("workers/")
        for item in imports(path)
        if item.top in NOT_FOR_WORKERS
    )


def test_torch_is_imported_only_where_tensors_are():
    offences(
        f"{path}:{item.line} imports {item.module}"
        for path in sources()
        if not path.startswith(HEAVY_PLACES)
        for item in imports(path)
        if item.top in HEAVY and (item.is_at_import_time or path.startswith("qwenapi/"))
    )


def test_one_module_alone_knows_ray():
    knows = {path for path in sources() for item in imports(path) if item.top == "ray"}
    assert knows == {RAY_PLACE}


def test_engine_parts_are_reached_only_from_functions():
    offences(
        f"{path}:{item.line} imports {item.module} at import time"
        for path in sources()
        if not path.startswith(HEAVY_PLACES)
        for item in imports(path)
        if item.is_at_import_time and item.module.startswith(("workers.engine.", "workers.model."))
    )


def test_interfaces_do_not_know_each_other():
    def found() -> Iterator[str]:
        for path in sources():
            if path.startswith("qwenapi/api/") and path.count("/") > 2:
                own = path.split("/")[2]
                for item in imports(path):
                    parts = item.module.split(".")
                    if parts[:2] == ["qwenapi", "api"] and parts[2:3] not in ([], [own]):
                        yield f"{path}:{item.line} imports {item.module}"

    offences(found())


def test_schemas_and_renderers_are_pure():
    offences(
        f"{path}:{item.line} imports {item.module}"
        for path in sources()
        if path.startswith("qwenapi/api/") and Path(path).name in PURE_NAMES
        for item in imports(path)
        if item.top in NOT_PURE
    )


def test_text_and_metrics_know_nothing_of_flask():
    offences(
        f"{path}:{item.line} imports {item.module}"
        for path in sources()
        if path.startswith(NO_FLASK_PLACES)
        for item in imports(path)
        if item.top in {"flask", "werkzeug", "gunicorn", "marshmallow"}
    )


def test_nothing_works_at_import_time():
    def found() -> Iterator[str]:
        for path, tree in sources().items():
            for node, is_lazy in walk(tree):
                what = node.func if isinstance(node, ast.Call) else node
                is_work = isinstance(node, ast.Call | ast.Subscript)
                if is_work and not is_lazy and IMPORT_TIME_WORK.search(ast.unparse(what)):
                    yield f"{path}:{node.lineno} runs {ast.unparse(node)[:60]} at import time"

    offences(found())


def test_nothing_unsafe_is_imported_or_called():
    def found() -> Iterator[str]:
        for path, tree in sources().items():
            for item in imports(path):
                if item.top in UNSAFE_MODULES:
                    yield f"{path}:{item.line} imports {item.module}"
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and is_unsafe(node):
                    yield f"{path}:{node.lineno} calls {ast.unparse(node)[:60]}"

    offences(found())


def is_unsafe(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    words = {
        word.arg for word in call.keywords if getattr(word.value, "value", None) is True
    }  # keywords given as a literal True
    return name in UNSAFE_CALLS or bool(words & {"shell", "trust_remote_code"})


def test_files_are_short_enough_to_read_in_one_sitting():
    def found() -> Iterator[str]:
        for path in sources():
            lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
            if lines > MAX_FILE_LINES and path not in LONG_FILES:
                yield f"{path} has {lines} lines: split it, or give the reason in LONG_FILES"

    offences(found())


def test_functions_are_short_enough_to_see_at_once():
    def found() -> Iterator[str]:
        for path, tree in sources().items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > MAX_FUNCTION_LINES and f"{path}:{node.name}" not in LONG_FUNCTIONS:
                        yield f"{path}:{node.lineno} {node.name} has {lines} lines"

    offences(found())


def test_every_module_says_what_it_is_for():
    offences(f"{path} has no docstring" for path, tree in sources().items() if no_docstring(tree))


def no_docstring(tree: ast.Module) -> bool:
    return bool(tree.body) and not ast.get_docstring(tree)


def test_every_module_begins_with_one_line_that_can_be_read_alone():
    """The tree of files and a reader in a hurry have no more than this line."""

    def found() -> Iterator[str]:
        for path, tree in sources().items():
            line = (ast.get_docstring(tree) or "").partition("\n\n")[0]
            if line and ("\n" in line or len(line) > MAX_FIRST_LINE or line[-1] not in ".!?"):
                yield f"{path} begins with no sentence of one line: {line}"

    offences(found())


def test_no_two_modules_begin_with_the_same_line():
    lines: dict[str, str] = {}
    offences(
        f"{path} begins like {lines[line]}: {line}"
        for path, tree in sources().items()
        if (line := (ast.get_docstring(tree) or "").partition("\n")[0])
        and lines.setdefault(line, path) != path
    )


def test_every_imported_package_is_declared():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options"]["install_requires"]
    for extra in setup["options.extras_require"].values():
        lines += extra
    declared = {normal(re.split(r"[\[<>=!~ ]", line)[0]) for line in lines.split()}
    owners = importlib.metadata.packages_distributions()

    def found() -> Iterator[str]:
        for path in sources():
            for item in imports(path):
                if item.top in sys.stdlib_module_names or item.top in PACKAGES:
                    continue
                # What is not installed, as an extra may be, goes by its own name.
                names = owners.get(item.top, [item.top])
                if not {normal(name) for name in names} & declared:
                    yield f"{path}:{item.line} imports {item.module}, which setup.cfg does not name"

    offences(found())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("module", ["qwenapi.app", "qwenapi.cli", "qwenapi.settings.sources"])
def test_http_half_starts_without_torch(module):
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr[-2000:]
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.split("\n")
    }
    assert module.partition(".")[0] in loaded
    assert not loaded & HEAVY


def test_command_line_starts_without_the_http_stack():
    command = [sys.executable, "-X", "importtime", "-c", "import qwenapi.cli"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.split("\n")
    }
    assert not loaded & {"flask", "gevent", "gunicorn", "marshmallow", "tokenizers", "rich"}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from workers.engine import engine",
        "x = eval('1')",
        "def f():\n import torch",
    ],
)
def test_the_rules_above_can_fail(code, monkeypatch):
    monkeypatch.setitem(sources(), "qwenapi/settings/sources.py", ast.parse(code))
    rules = (
        test_nothing_unsafe_is_imported_or_called,
        test_rooms_import_only_what_the_table_allows,
        test_torch_is_imported_only_where_tensors_are,
    )
    failed = 0
    for rule in rules:
        try:
            rule()
        except AssertionError as error:
            failed += "qwenapi/settings/sources.py" in str(error)
    assert failed == 1
