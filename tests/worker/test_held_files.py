"""Files held in memory stay there when the kernel is told to drop them, and may go afterwards."""

import ctypes
import mmap
import os
import resource

import numpy as np
import pytest

from workers.memory import Memory
from workers.worker import held_files
from workers.worker.held_files import HeldFiles

SIZE = 16 * mmap.PAGESIZE


def may_lock(num_bytes):
    """Whether this user may lock as much; root may all."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return os.geteuid() == 0 or limit == resource.RLIM_INFINITY or limit >= num_bytes


def in_memory(file):
    """Return how many of a file's pages are in memory, once those that may go have been dropped."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pages = np.memmap(file, np.uint8, mode="r")
    found = (ctypes.c_ubyte * (len(pages) // mmap.PAGESIZE))()
    address, length = ctypes.c_void_p(pages.ctypes.data), ctypes.c_size_t(len(pages))
    assert ctypes.CDLL(None).mincore(address, length, found) == 0
    return sum(flags & 1 for flags in found)


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as opened:
        opened.write(os.urandom(SIZE))
        os.fsync(opened.fileno())  # what is not written yet is not dropped
    if in_memory(file):
        pytest.skip("this file system keeps its files in memory")
    return file


@pytest.mark.skipif(not may_lock(SIZE), reason="ulimit -l is small")
def test_they_stay_until_they_are_released(file):
    held = HeldFiles()
    assert held.hold([file])
    assert in_memory(file) == SIZE // mmap.PAGESIZE
    held.release()
    assert in_memory(file) == 0


def test_where_nothing_may_be_locked_it_is_said_and_nothing_fails(file, caplog, monkeypatch):
    held = HeldFiles()

    def refuse(address, length):
        ctypes.set_errno(12)
        return -1

    monkeypatch.setattr(held, "_libc", type("Libc", (), {"mlock": staticmethod(refuse)}))
    assert not held.hold([file])
    assert "mlock: Cannot allocate memory; raise LimitMEMLOCK or ulimit -l" in caplog.text


def test_more_than_half_of_what_is_free_is_not_held(file, caplog, monkeypatch):
    monkeypatch.setattr(held_files, "machine_memory", lambda: Memory(4 * SIZE, SIZE))
    assert not HeldFiles().hold([file])
    assert "not held in memory" in caplog.text and in_memory(file) == 0


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        HeldFiles().hold([tmp_path / "gone"])
