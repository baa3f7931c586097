"""Tiny models and the engines over them, as the tests of the engine have them; packed ones too."""

from pathlib import Path

import pytest

from tests.engine.conftest import drive, prompts  # noqa: F401
from tests.engine.conftest import model_of as tiny_model_of  # noqa: F401
from tests.model.twins import write_twins


@pytest.fixture
def model_of(tiny_model_of):  # noqa: F811
    """Let `drive` take the directory of a model too."""
    return lambda name: (name, None) if isinstance(name, Path) else tiny_model_of(name)


@pytest.fixture
def twins(model_of, tmp_path):
    """Return a function that writes a packed checkpoint and its unpacked twin."""
    return lambda name, packer: write_twins(model_of(name)[0], tmp_path, packer)
