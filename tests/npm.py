"""Node packages for tests: the locked ones of a folder, installed once under pytest's cache.

What is missing is named in the reason of a skip: npm, or a registry to install from.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.one_at_a_time import alone_in


def installed(source: Path, folder: Path) -> Path:
    """Return the folder, with what `source`'s package-lock.json names in its node_modules."""
    with alone_in(folder):
        return _installed(source, folder)


def _installed(source: Path, folder: Path) -> Path:
    lock = source / "package-lock.json"
    done_lock = folder / "installed-lock.json"
    if done_lock.is_file() and done_lock.read_bytes() == lock.read_bytes():
        return folder
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed (Debian: apt-get install npm)")
    for file in (source / "package.json", lock):
        shutil.copy(file, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    # A lock at odds with its package.json is our own fault.
    assert "code EUSAGE" not in done.stderr, done.stderr
    if done.returncode:
        pytest.skip(f"npm cannot install the packages of {lock}: {done.stderr[-300:]}")
    shutil.copy(lock, done_lock)
    return folder
