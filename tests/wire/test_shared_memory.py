import os
import resource
import subprocess
import sys
import time

import pytest

from workers.errors import SharedMemoryError
from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.layout import Layout
from workers.wire.shared_memory import SharedMemory
from workers.wire.shared_memory_files import remove_shared_memory, shared_memory_path


def test_what_the_owner_writes_every_reader_sees(tmp_path):
    memory = SharedMemory.create(tmp_path / "p", ENGINE_LAYOUT, 2)
    slot = memory.lease(1)
    slot.update(step=7, beat_ns=2**62)
    slot["step"] += 1
    other = SharedMemory.open(tmp_path / "p", ENGINE_LAYOUT)
    assert other.read(1)["step"] == 8
    assert other.read(1)["beat_ns"] == 2**62
    assert other.read(0)["step"] == 0


def test_a_slot_has_one_owner_even_after_it_opened_the_file_again(tmp_path):
    memory = SharedMemory.create(tmp_path / "p", ENGINE_LAYOUT, 1)
    memory.lease(0)
    SharedMemory.open(tmp_path / "p", ENGINE_LAYOUT).close()  # would end a plain lockf lease
    with pytest.raises(SharedMemoryError, match="another process"):
        SharedMemory.open(tmp_path / "p", ENGINE_LAYOUT).lease(0)


def test_a_killed_owner_frees_its_slot_and_the_next_one_goes_on_counting(tmp_path):
    memory = SharedMemory.create(tmp_path / "p", ENGINE_LAYOUT, 1)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from workers.wire.engine_stats import *\n"
        "from workers.wire.shared_memory import *\n"
        "slot = SharedMemory.open(Path(sys.argv[1]), ENGINE_LAYOUT).lease(0)\n"
        "slot['step'] += 41\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "p"]).returncode == -9
    slot = memory.lease(0)
    slot["step"] += 1
    assert memory.read(0)["step"] == 42


def test_a_file_of_another_layout_or_a_torn_one_is_refused(tmp_path):
    SharedMemory.create(tmp_path / "p", ENGINE_LAYOUT, 1)
    with pytest.raises(SharedMemoryError, match="layout"):
        SharedMemory.open(tmp_path / "p", Layout("engine", ("pid", "generation")))
    os.truncate(tmp_path / "p", 64)
    with pytest.raises(SharedMemoryError, match="truncated"):
        SharedMemory.open(tmp_path / "p", ENGINE_LAYOUT)
    (tmp_path / "q").write_bytes(b"x")
    with pytest.raises(SharedMemoryError, match="not a file of shared memory"):
        SharedMemory.open(tmp_path / "q", ENGINE_LAYOUT)


def test_no_room_is_an_error_at_creation_and_no_signal_later(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    code = (
        "import signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from workers.wire.engine_stats import *\n"
        "from workers.wire.shared_memory import *\n"
        "try: SharedMemory.create(Path(sys.argv[1]), ENGINE_LAYOUT, 64)\n"
        "except SharedMemoryError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, tmp_path / "p"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "cannot allocate" in done.stdout


def test_two_run_directories_never_share_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert shared_memory_path(tmp_path / "a", ENGINE_LAYOUT) != shared_memory_path(
        tmp_path / "b", ENGINE_LAYOUT
    )


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "p").symlink_to(tmp_path / "victim")
    with pytest.raises(SharedMemoryError):
        SharedMemory.create(tmp_path / "p", ENGINE_LAYOUT, 1)
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("seconds", [0, 3600])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_an_earlier_process_of_the_same_id_has_left_blocks_nothing(tmp_path, kind, seconds):
    """In containers process ids repeat, from the first one on."""
    left = tmp_path / f"p.{os.getpid()}"
    if kind == "folder":
        left.mkdir()
    elif kind == "link":
        left.symlink_to(tmp_path / "nowhere")
    else:
        left.write_bytes(b"half")
    then = time.time() - seconds
    os.utime(left, (then, then), follow_symlinks=False)
    SharedMemory.create(tmp_path / "p", ENGINE_LAYOUT, 1).lease(0)["step"] = 3
    assert SharedMemory.open(tmp_path / "p", ENGINE_LAYOUT).read(0)["step"] == 3
    is_removed = seconds > 60 and kind != "folder"
    assert left.is_symlink() + left.exists() == (0 if is_removed else 1)


def test_a_process_killed_while_it_makes_memory_leaves_nothing_for_long(tmp_path, monkeypatch):
    def die(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", die)
        SharedMemory.create(tmp_path / "p.shm", ENGINE_LAYOUT, 1)
    (left,) = tmp_path.iterdir()
    remove_shared_memory(tmp_path)
    if left.parent == shared_memory_path(tmp_path, ENGINE_LAYOUT).parent:
        assert not list(tmp_path.iterdir())


def test_a_file_made_anew_in_another_size_leaves_its_readers_theirs(tmp_path):
    old = SharedMemory.create(tmp_path / "p", ENGINE_LAYOUT, 40)
    old.lease(39)["step"] = 7
    new = SharedMemory.create(tmp_path / "p", ENGINE_LAYOUT, 1)
    assert old.read(39)["step"] == 7  # truncated under it, this would be SIGBUS
    assert new.num_slots == 1 and new.read(0)["step"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
