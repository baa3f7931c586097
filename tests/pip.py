"""Python packages for tests that cannot stand beside the project's own: an environment of theirs.

Made once under pytest's cache, by the pip that installs the project. What is missing is named in
the reason of a skip: a registry to install from.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.one_at_a_time import alone_in


def installed(lock: Path, folder: Path) -> Path:
    """Return the Python of an environment in the folder that has what a lock names, no more."""
    with alone_in(folder):
        return _installed(lock, folder)


def _installed(lock: Path, folder: Path) -> Path:
    python, done_lock = folder / "environment/bin/python", folder / "installed.txt"
    if done_lock.is_file() and done_lock.read_bytes() == lock.read_bytes():
        return python
    make = [sys.executable, "-m", "venv", "--clear", str(folder / "environment")]
    subprocess.run(make, check=True, timeout=120)
    options = ["--quiet", "--no-deps", "--no-compile", "--only-binary", ":all:", "--retries", "1"]
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
    done = subprocess.run(
        [*install, *options, "-r", str(lock)], capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        pytest.skip(f"pip cannot install the packages of {lock}: {done.stderr[-300:]}")
    done_lock.write_bytes(lock.read_bytes())
    return python
