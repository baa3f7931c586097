"""ModelScope: chosen by a setting or vLLM's variable, and told how to be had where it is missing.

With the library installed, a hub on loopback gives a model.
"""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qwenapi.hub.fetch import with_local_model
from qwenapi.settings import sources
from qwenapi.settings.table import Settings, etc_dir
from tests.checkpoint.folders import write_folder
from tests.hub.modelscope_server import REPO, modelscope_server
from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ConfigError, ExitCode

HAS_LIBRARY = importlib.util.find_spec("modelscope") is not None
ASKED = replace(Settings(), model="org/tiny", model_source="modelscope")


@pytest.mark.skipif(HAS_LIBRARY, reason="the library is installed")
def test_without_the_library_its_install_line_is_named():
    with pytest.raises(ConfigError) as caught:
        with_local_model(ASKED, print)
    assert str(caught.value).endswith("pip install 'qwenapi[modelscope]'")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "huggingface"),
        ({"VLLM_USE_MODELSCOPE": "1"}, "modelscope"),
        ({"VLLM_USE_MODELSCOPE": "True"}, "modelscope"),
        ({"VLLM_USE_MODELSCOPE": "0"}, "huggingface"),
        ({"VLLM_USE_MODELSCOPE": "1", "QWENAPI_MODEL_SOURCE": "huggingface"}, "huggingface"),
        ({"VLLM_USE_MODELSCOPE": ""}, "huggingface"),
    ],
)
def test_vllms_variable_chooses_the_hub(environ, expected):
    assert sources.load({}, environ).model_source == expected


def test_a_variable_that_is_neither_is_refused():
    with pytest.raises(ConfigError, match="VLLM_USE_MODELSCOPE=maybe: must be true or false"):
        sources.load({}, {"VLLM_USE_MODELSCOPE": "maybe"})


def test_a_directory_needs_no_library(tmp_path):
    asked = replace(ASKED, model=str(tmp_path))
    assert with_local_model(asked, print) == asked


@pytest.mark.skipif(not HAS_LIBRARY, reason="pip install modelscope")
def test_a_model_is_fetched_checked_and_found_again(tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "modeling_tiny.py").write_text("raise SystemExit")

    def fetch(endpoint: str, model: str = REPO) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "tests.hub.fetch_once", model, "modelscope"],
            env=os.environ
            | {"MODELSCOPE_ENDPOINT": endpoint, "MODELSCOPE_CACHE": str(tmp_path / "cache")},
            cwd=etc_dir().parent,
            capture_output=True,
            text=True,
            timeout=120,
        )

    with modelscope_server(source) as (endpoint, fetched):
        done = fetch(endpoint)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip().splitlines()[-1])
        Checkpoint.at(folder).check()
        assert "model.safetensors" in fetched and "modeling_tiny.py" not in fetched
        none = fetch(endpoint, "org/none")
        assert none.returncode == ExitCode.CONFIG
        assert "org/none: ModelScope refuses" in none.stderr.splitlines()[-1]
    again = fetch(endpoint)
    assert again.returncode == 0, again.stderr
    assert Path(again.stdout.strip().splitlines()[-1]) == folder
    assert f"{REPO}: ModelScope cannot be reached; the cached copy is served" in again.stderr
