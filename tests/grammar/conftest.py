"""A compiler over the demo model's tokenizer, and over a real one where QWEN_ASSETS has it."""

import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from workers.grammar.compiler import GrammarCompiler
from workers.grammar.tokenizer_file import TokenizerFile

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "etc/models/demo/tokenizer.json"
DEMO_SIZE, IM_END, THINK, END_THINK = 3000, 2993, 2998, 2999


@pytest.fixture(scope="session")
def demo_tokenizer():
    return Tokenizer.from_file(str(DEMO))


@pytest.fixture(scope="session")
def compiler():
    made = GrammarCompiler(TokenizerFile(str(DEMO), DEMO_SIZE, (IM_END,)))
    yield made
    made.close()


@pytest.fixture(scope="session")
def real_tokenizer():
    """Return the file of a real Qwen model's tokenizer."""
    folder = os.environ.get("QWEN_ASSETS", "")
    path = Path(folder) / "tokenizer.json"
    if not folder or not path.exists():
        pytest.skip("QWEN_ASSETS names no folder with a real tokenizer.json")
    return path
