"""Which requests are refused, in one process and in several that share a run directory."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwenapi.engines import quarantine as module
from qwenapi.engines.quarantine import MAX_REQUESTS, NAME, QUARANTINE_SECONDS, Quarantine
from workers.wire.protocol import Generate, SamplingParams


def request(prompt=(1, 2), choices=(0,), **params):
    asked = SamplingParams(**({"max_tokens": 9} | params))
    return Generate(wid=1, request_id="r", prompt_ids=prompt, params=asked, choices=choices)


@pytest.fixture
def clock(monkeypatch):
    """Return what moves the clock of all quarantines."""
    ahead = [0]
    real = module.time.monotonic_ns
    monkeypatch.setattr(module.time, "monotonic_ns", lambda: real() + ahead[0] * 10**9)

    def advance(seconds):
        ahead[0] += seconds

    return advance


@pytest.fixture(params=["alone", "shared"])
def folder(request, tmp_path):
    return tmp_path if request.param == "shared" else None


def test_a_request_is_known_by_prompt_and_parameters_for_ten_minutes(folder, clock):
    quarantine = Quarantine(folder)
    assert request() not in quarantine
    quarantine.add(request(seed=1))
    assert request(seed=2) in quarantine, "a seed nobody chose is another each time"
    assert request((1, 3)) not in quarantine
    assert request(top_k=1) not in quarantine
    assert request(choices=(0, 1)) not in quarantine
    clock(QUARANTINE_SECONDS - 1)
    assert request() in quarantine
    clock(2)
    assert request() not in quarantine


def test_it_keeps_the_newest_and_no_more(folder, clock):
    quarantine = Quarantine(folder)
    for number in range(MAX_REQUESTS + 10):
        quarantine.add(request((number,)))
    assert request((9,)) not in quarantine and request((10,)) in quarantine
    assert request((MAX_REQUESTS + 9,)) in quarantine


def test_what_one_process_found_all_refuse_also_those_that_come_later(tmp_path, clock):
    one, two = Quarantine(tmp_path), Quarantine(tmp_path)
    assert request() not in two
    one.add(request())
    assert request() in two and request() in Quarantine(tmp_path)
    two.add(request((5,)))
    assert request((5,)) in one and request() in one
    clock(QUARANTINE_SECONDS + 1)
    assert request() not in two and request() not in Quarantine(tmp_path)
    one.add(request((6,)))
    assert (tmp_path / NAME).stat().st_size == 16 + 24, "what is over is still in the file"


def test_several_processes_may_add_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.engines.test_quarantine import request, Quarantine\n"
        "mine = Quarantine(Path(sys.argv[1]))\n"
        "for number in range(20): mine.add(request((int(sys.argv[2]), number)))\n"
    )

    def add(name):
        return subprocess.run([sys.executable, "-c", code, tmp_path, str(name)]).returncode

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(add, range(3))) == [0, 0, 0]
    quarantine = Quarantine(tmp_path)
    assert all(request((name, number)) in quarantine for name in range(3) for number in range(20))


@pytest.mark.parametrize("content", [b"", b"short", b"k" * 16 + b"half an entry", os.urandom(6000)])
def test_a_file_that_was_cut_or_is_none_of_ours_stops_nobody(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    quarantine = Quarantine(tmp_path)
    assert request() not in quarantine
    quarantine.add(request())
    assert request() in quarantine and request() in Quarantine(tmp_path)


def test_an_entry_of_an_earlier_boot_is_dropped(tmp_path, clock):
    clock(10**6)
    Quarantine(tmp_path).add(request())
    clock(-(10**6))
    assert request() not in Quarantine(tmp_path)


def test_it_is_readable_for_its_owner_only_and_follows_no_link(tmp_path):
    Quarantine(tmp_path).add(request())
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
    (tmp_path / "other").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "other" / NAME).symlink_to(tmp_path / "victim")
    mine = Quarantine(tmp_path / "other")
    mine.add(request())
    assert request() in mine, "without a file it is this process's own"
    assert (tmp_path / "victim").read_text() == "precious"


def test_without_a_folder_each_process_has_its_own(tmp_path):
    mine = Quarantine(tmp_path / "gone")
    mine.add(request())
    assert request() in mine and request() not in Quarantine(tmp_path / "gone")
