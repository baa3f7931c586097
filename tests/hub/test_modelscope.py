"""ModelScope: chosen by a setting or vLLM's variable, and told how to be had where it is missing.

With the library installed, a hub on loopback gives a model.
"""

import importlib.util
from dataclasses import replace

import pytest

from qwenapi.hub.fetch import with_local_model
from qwenapi.settings import sources
from qwenapi.settings.table import Settings
from workers.errors import ConfigError

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
