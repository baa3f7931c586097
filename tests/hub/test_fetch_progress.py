"""How far a fetch has come, where no terminal is: lines at its begin and end and in between."""

import io
import re
import time

from qwenapi.hub.fetch_progress import FetchProgress, folder_bytes, size_text


def test_lines_tell_what_has_come_at_which_rate_and_what_is_left():
    had = [5_000_000]
    out = io.StringIO()
    with FetchProgress("org/tiny", 4_000_000, lambda: had[0], out, interval=0.05):
        time.sleep(0.1)
        had[0] += 1_000_000
        time.sleep(0.4)
    first, *between, last = out.getvalue().splitlines()
    assert first == "org/tiny: fetching 4.0 MB"
    assert re.fullmatch(r"org/tiny: fetched 4\.0 MB in \d s", last)
    assert between[0].startswith("org/tiny: 0.0 MB of 4.0 MB, 0.0 MB/s")
    line = r"org/tiny: 1\.0 MB of 4\.0 MB, \d+\.\d MB/s, \d+ s left"
    assert any(re.fullmatch(line, text) for text in between), between


def test_a_fetch_that_fails_is_not_called_fetched():
    out = io.StringIO()
    try:
        with FetchProgress("a/b", 1, lambda: 0, out):
            raise ValueError
    except ValueError:
        pass
    assert "fetched" not in out.getvalue()


def test_a_folder_has_the_bytes_of_its_files_once(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(bytes(7))
    (tmp_path / "link").symlink_to("blobs/a")
    assert folder_bytes(tmp_path) == 7
    assert folder_bytes(tmp_path / "none") == 0


def test_sizes_are_in_the_units_of_hubs():
    assert [size_text(n) for n in (0, 999_949_999, 1.5e9)] == ["0.0 MB", "999.9 MB", "1.5 GB"]
