"""Write what the pages take from the code: `python -m tests.docs.generate`.

    docs/settings.md       the table of settings
    docs/architecture.md   the tree of files, each with the first sentence of its docstring
    docs/clients.md        what each client was seen to do, in both languages
    docs/performance.md    what weights take rounded to fewer bits, in both languages
    docs/reliability.md    the promises, and the tests that show them, in both languages
    docs/models.md         which formats of weights each architecture was loaded from, in both

Each stands between two comments of its page. A folder's sentence is its package's. Knows pages and
docstrings; refuses to know any module by name.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qwenapi.settings.table import table
from tests.clients import record
from tests.docs import promises
from tests.doctor import rounded_sizes
from tests.model import record as formats

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("qwenapi", "workers")
# A full stop, or what ends a sentence like it, before a space: none within `e.g.`, `a.b` or 3.11.
SENTENCE = re.compile(r".+?[.!?](?=\s|$)(?<!e\.g\.)(?<!i\.e\.)", re.DOTALL)


def tree() -> str:
    """Return the packages as a drawing, one line a file."""
    lines: list[tuple[str, str]] = []
    for package in PACKAGES:
        lines.append((package + "/", sentence(ROOT / package)))
        lines += draw(ROOT / package)
    width = max(len(name) for name, _ in lines) + 2
    drawn = [f"{name:<{width}}# {said}" if said else name for name, said in lines]
    return "\n".join(["```", *drawn, "```", ""])


def draw(folder: Path, indent: str = "") -> Iterator[tuple[str, str]]:
    """Yield a name and a sentence for what is in a folder: its files, then its folders."""
    inner = [path for path in sorted(folder.iterdir()) if has_code(path)]
    inner.sort(key=lambda path: path.is_dir())
    for path in inner:
        is_last = path == inner[-1]
        branch = "└── " if is_last else "├── "
        yield indent + branch + path.name + ("/" if path.is_dir() else ""), sentence(path)
        if path.is_dir():
            yield from draw(path, indent + ("    " if is_last else "│   "))


def has_code(path: Path) -> bool:
    """Return whether a path is a module that is drawn, or a folder with one in it."""
    if path.is_dir():
        return any(path.rglob("*.py"))
    return path.suffix == ".py" and path.name != "__init__.py"


def sentence(path: Path) -> str:
    """Return the first sentence of a module or package; nothing of a folder that is neither."""
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file():
        return ""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    found = SENTENCE.match(docstring)
    return " ".join((found[0] if found else docstring).split())


def settings_table_markdown() -> str:
    """Return the table of all settings, of docs/settings.md."""
    lines = ["| in a file | flag | default | meaning |", "|---|---|---|---|"]
    for row in table().values():
        if not row.hidden:
            meaning = row.help + (f" ({', '.join(row.choices)})" if row.choices else "")
            lines.append(f"| `{row.key}` | `{row.flag}` | {_cell(row.default)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _cell(default: Any) -> str:
    if default in ("", (), None):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


# The comments around what is written, by the page it stands in.
GENERATED: Mapping[str, tuple[str, Callable[[], str]]] = {
    "docs/settings.md": ("settings", settings_table_markdown),
    "docs/architecture.md": ("tree", tree),
    "docs/clients.md": ("clients", record.table),
    "docs/zh/clients.md": ("clients", record.table_zh),
    "docs/performance.md": ("sizes", rounded_sizes.table),
    "docs/zh/performance.md": ("sizes", rounded_sizes.table_zh),
    "docs/reliability.md": ("promises", promises.table),
    "docs/zh/reliability.md": ("promises", promises.table_zh),
    "docs/models.md": ("formats", formats.table),
    "docs/zh/models.md": ("formats", formats.table_zh),
}


def between(text: str, name: str) -> tuple[int, int]:
    """Return where the part of a page begins and ends that is written here."""
    begin = re.search(rf"<!-- {name}: written by .*? -->\n", text)
    end = text.index(f"<!-- {name}: end -->")
    assert begin and begin.end() <= end, name
    return begin.end(), end


def main() -> None:
    for page, (name, write) in GENERATED.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        begin, end = between(text, name)
        (ROOT / page).write_text(text[:begin] + write() + text[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
