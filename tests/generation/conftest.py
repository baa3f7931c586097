"""Tokenizers for tests of prompts: the demo's, and Qwen's own where QWEN_ASSETS names its files."""

import pytest

from qwenapi.settings.table import etc_dir
from qwenapi.text.tokenizer import Tokenizer
from tests.text.conftest import assets, qwen

__all__ = ["assets", "qwen"]


@pytest.fixture(scope="session")
def demo() -> Tokenizer:
    """Return the demo's: Hermes calls, and thoughts that the model opens itself."""
    return Tokenizer(etc_dir() / "models" / "demo")
