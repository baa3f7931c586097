"""The pages say what the code says, in both languages, and the project stands alone."""

import re
import subprocess
import sys

import pytest

from qwenapi.settings.table import table
from tests.docs.generate import GENERATED, between, settings_table_markdown
from tests.docs.pages import ROOT, Page, anchor, pages

CHINESE = re.compile(r"[\u4e00-\u9fff]")
FOLDERS = "qwenapi|workers|tests|etc|systemd|bin|docs"
MAX_README_LINES = 180
MAX_PICTURE_BYTES = 200_000
TREE_LINE = re.compile(r"^(?P<indent>(?:│   |    )*)(?:├── |└── )(?P<name>[^\s#]+)", re.MULTILINE)

each_page = pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)


def settings_rows(text: str) -> list[list[str]]:
    """Return the cells of each row of the settings table, its two header lines left out."""
    lines = re.findall(r"^\| `[^|]*` \| `--[^\n]*\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("name", GENERATED)
def test_what_comes_from_the_code_is_as_the_code_says_now(name):
    """If not: `python -m tests.docs.generate` writes it."""
    mark, write = GENERATED[name]
    begin, end = between(Page(name).text, mark)
    assert Page(name).text[begin:end] == write()


def test_every_file_of_the_tree_says_what_it_is_for():
    drawn = Page("docs/architecture.md").text
    begin, end = between(drawn, "tree")
    silent = [line for line in drawn[begin:end].splitlines() if ".py" in line and "# " not in line]
    assert not silent


def test_chinese_settings_table_has_the_same_rows():
    ours = settings_rows(Page("docs/zh/settings.md").text)
    generated = settings_rows(settings_table_markdown())
    assert [row[:-1] for row in ours] == [row[:-1] for row in generated]
    assert all(CHINESE.search(row[-1]) for row in ours)


def test_every_setting_is_documented():
    for row in table().values():
        for name in ("docs/settings.md", "docs/zh/settings.md"):
            assert (f"`{row.flag}`" in Page(name).text) is not row.hidden


def test_every_package_has_its_line_in_chinese():
    text = Page("docs/zh/architecture.md").text
    rooms = {
        file.parent.relative_to(ROOT).as_posix() + "/"
        for package in ("qwenapi", "workers")
        for file in ROOT.glob(f"{package}/*/__init__.py")
    }
    assert set(re.findall(r"^\| `((?:qwenapi|workers)/\w+/)` \|", text, re.MULTILINE)) == rooms


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_front_page_is_short(name):
    assert len(Page(name).text.splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_front_page_leads_to_every_page_of_its_language(name):
    front = Page(name)
    others = {p.name for p in pages() if p.is_chinese == front.is_chinese and p.name != name}
    assert others <= set(front.links)


@each_page
def test_each_page_has_the_same_skeleton_in_the_other_language(page):
    """The same headings in number and level, the same code, comments aside, the same pictures."""
    twin = page.twin
    assert twin.path.is_file(), twin.name
    assert [mark for mark, _ in page.headings] == [mark for mark, _ in twin.headings]
    assert code_of(page) == code_of(twin)
    assert pictures_of(page) == pictures_of(twin)
    if page.path.name != "architecture.md":  # its English tree is a Chinese table
        assert page.prose.count("\n|") == twin.prose.count("\n|")
    assert any(CHINESE.search(words) for _, words in page.headings) is page.is_chinese


def code_of(page: Page) -> list[str]:
    blocks = page.blocks("bash", "python", "javascript")
    return [re.sub(r" *#.*", "", code) for code in blocks]


def pictures_of(page: Page) -> list[str]:
    return re.findall(r"!\[[^\]]+\]\((?:.*/)?([^/)]+)\)", page.prose)


@each_page
def test_links_and_anchors_lead_somewhere(page):
    for link in page.links:
        if link.startswith("http"):
            assert link.startswith("http://127.0.0.1"), f"{link}: the pages stand alone"
            continue
        path, _, wanted = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists(), link
        if wanted:
            assert wanted in Page(target.relative_to(ROOT).as_posix()).anchors, link


@each_page
def test_links_stay_in_the_readers_language(page):
    """But for the front pages, which lead to each other, and for what only English has: what is
    made from the code.
    """
    known = {other.path.resolve(): other for other in pages()}
    front = {"README.md", "README.zh.md"}
    only_english = {name for name in GENERATED if Page(name).twin.name not in GENERATED}
    for link in page.links:
        other = known.get((page.path.parent / link.partition("#")[0]).resolve())
        if other is not None and page.name not in front and other.name not in only_english:
            assert other.is_chinese is page.is_chinese, link


def test_every_picture_is_shown_and_small():
    shown = {name for page in pages() for name in pictures_of(page)}
    files = list((ROOT / "docs/pictures").iterdir())
    assert {file.name for file in files} == shown
    assert all(file.stat().st_size < MAX_PICTURE_BYTES for file in files)


@each_page
def test_python_examples_compile(page):
    for code in page.blocks("python"):
        compile(code, page.name, "exec")


@each_page
def test_folders_and_modules_that_are_named_exist(page):
    """Paths from the project's folder, `NAME` standing for any, and what `python -m` is given."""
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.text):
        assert "NAME" in path or (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:tests|qwenapi)\.[\w.]+)", page.text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module


def test_the_hand_drawn_tree_names_only_what_exists():
    for name in ("docs/architecture.md", "docs/zh/architecture.md"):
        drawn = next(code for code in Page(name).blocks("") if code.startswith("etc/"))
        paths = list(tree_paths(drawn))
        assert len(paths) > 20
        assert not [path for path in paths if not (ROOT / path).exists()]


def tree_paths(block: str):
    folders: list[str] = []
    for line in block.splitlines():
        found = TREE_LINE.match(line)
        if found:
            depth = 1 + len(found["indent"]) // 4
            del folders[depth:]
            folders.append(found["name"].rstrip("/"))
            yield "/".join(folders)
        else:
            folders = [line.split("#")[0].strip().rstrip("/")]


def test_the_flags_of_every_command_are_known():
    """What the pages call `qwenapi` with is in the help of that command."""
    used: dict[str, set[str]] = {}
    for page in pages():
        for command in page.commands():
            found = re.search(r"(?:^|bin/|\$\(bin/)qwenapi ((?:keys )?[a-z-]+)(.*)", command)
            if found:
                used.setdefault(found[1], set()).update(re.findall(r" (--[a-z-]+)", found[2]))
    assert len(used) > 10
    for command, flags in used.items():
        help_ = help_of(command)
        assert not {flag for flag in flags if not re.search(rf"{flag}\b", help_)}, command


def help_of(command: str) -> str:
    line = [sys.executable, "-m", "qwenapi", *command.split(), "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_anchors_are_githubs():
    assert anchor("Not done yet, not checked") == "not-done-yet-not-checked"
    assert anchor("尚未完成、尚未验证") == "尚未完成尚未验证"
    assert anchor("`top` and Grafana") == "top-and-grafana"


def test_nothing_names_a_machine_a_registry_or_a_folder_beside_the_checkout():
    foreign = re.compile(
        "|".join(["/opt/" + "wheels", "py" + "pi", r"\.\./" + "shared", "/wo" + "rk/"])
    )
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if (
            any(part.startswith(".") for part in parts)
            or path.suffix in {".pyc", ".so", ".png"}
            or not path.is_file()
        ):
            continue
        found = foreign.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path} names {found and found[0]}"
