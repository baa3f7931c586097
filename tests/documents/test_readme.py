"""The examples of the README's documented interfaces run as they are printed there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import npm

ROOT = Path(__file__).resolve().parents[2]


def example(language, readme="README.md"):
    """Return the block of a language that stands under the table of the profiles."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    text = text[
        text.index("| `news` (8000) |" if readme == "README.md" else "| `news`（8000） |") :
    ]
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


@pytest.mark.parametrize("language", ["python", "javascript", "bash"])
def test_both_readmes_have_the_same_examples(language):
    assert example(language) == example(language, "README.zh.md")


def test_the_python_example_prints_the_answers(everything_at_once):
    text = example("python").replace("http://127.0.0.1:8000", everything_at_once.url)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert "冒泡排序" in done.stdout and "你好" in done.stdout and "机器学习" in done.stdout


def test_the_axios_example_prints_the_answer(everything_at_once, pytestconfig):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    source = Path(__file__).with_name("npm")
    modules = npm.installed(source, pytestconfig.cache.mkdir("documents-npm")) / "node_modules"
    text = example("javascript").replace("http://127.0.0.1:8000", everything_at_once.url)
    command = ["node", "--input-type=commonjs", "-e", text]
    environ = {"NODE_PATH": str(modules), "PATH": str(Path(shutil.which("node")).parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    assert "央行" in done.stdout
