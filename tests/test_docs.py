"""The README says what the code says, in both languages, and the project stands alone."""

import re
from pathlib import Path

import pytest

from qwenapi.settings.table import settings_table_markdown, table

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh.md")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
TREE_LINE = re.compile(r"^(?P<indent>(?:│   |    )*)(?:├── |└── )(?P<name>[^\s#]+)", re.MULTILINE)


def readme(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def settings_rows(text: str) -> list[list[str]]:
    """Return the cells of each row of the settings table, its two header lines left out."""
    lines = re.findall(r"^\| `[^|]*` \| `--[^\n]*\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_english_settings_table_is_the_generated_one():
    assert settings_table_markdown() in readme("README.md")


def test_chinese_settings_table_has_the_same_rows():
    ours, generated = (
        settings_rows(readme("README.zh.md")),
        settings_rows(settings_table_markdown()),
    )
    assert [row[:-1] for row in ours] == [row[:-1] for row in generated]
    assert all(CHINESE.search(row[-1]) for row in ours)


def test_every_setting_is_documented():
    for row in table().values():
        for name in READMES:
            assert (f"`{row.flag}`" in readme(name)) is not row.hidden


def test_both_readmes_have_the_same_skeleton():
    """The same headings in number and level, and the same code and tree, comments aside."""
    shapes = []
    for name in READMES:
        headings = re.findall(r"^(#+) ", readme(name), re.MULTILINE)
        blocks = re.findall(r"```(\w*)\n(.*?)```", readme(name), re.DOTALL)
        commands = [code for language, code in blocks if language in ("bash", "python")]
        shapes.append((headings, [re.sub(r" *#.*", "", code) for code in commands]))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", READMES)
def test_the_file_tree_names_only_what_exists(name):
    text = readme(name)
    paths = list(tree_paths(text[text.index("\nqwenapi/ ") :]))
    assert len(paths) > 40
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def tree_paths(block: str):
    folders: list[str] = []
    for line in block.split("```")[0].splitlines():
        found = TREE_LINE.match(line)
        if found:
            depth = 1 + len(found["indent"]) // 4
            del folders[depth:]
            folders.append(found["name"].rstrip("/"))
            yield "/".join(folders)
        elif re.match(r"^[\w.]+/$", line.split("#")[0].strip()):
            folders = [line.split("#")[0].strip().rstrip("/")]


@pytest.mark.parametrize("name", READMES)
def test_links_between_files_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#:]+)\)", readme(name)):
        assert (ROOT / target).exists(), target


def test_python_examples_compile():
    for name in READMES:
        for code in re.findall(r"```python\n(.*?)```", readme(name), re.DOTALL):
            compile(code, name, "exec")


def test_nothing_names_a_machine_a_registry_or_a_folder_beside_the_checkout():
    foreign = re.compile(
        "|".join(["/opt/" + "wheels", "py" + "pi", r"\.\./" + "shared", "/wo" + "rk/"])
    )
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if (
            any(part.startswith(".") for part in parts)
            or path.suffix in {".pyc", ".so"}
            or not path.is_file()
        ):
            continue
        found = foreign.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path} names {found and found[0]}"
