"""A machine with control groups as a test wants them."""

import pytest

from workers import cgroups


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return what writes the files of control groups, and which of them this process is in."""

    def machine(named, files):
        (tmp_path / "self").write_text(named)
        for name, text in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(cgroups, "FILE", tmp_path / "self")
        monkeypatch.setattr(cgroups, "ROOT", tmp_path / "root")

    return machine
