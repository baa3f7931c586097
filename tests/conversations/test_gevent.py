import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_locked_file_holds_up_no_other_greenlet(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.conversations.under_gevent", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500  # of the 1,500 ms that it was locked
    assert done.stderr == ""  # gevent's pool prints what is raised in it: nothing may be


def test_the_store_does_not_need_gevent():
    code = "import qwenapi.conversations.sqlite, sys; sys.exit('gevent' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
