"""A small byte-level tokenizer trained here, and Qwen's own where QWEN_ASSETS names its files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from qwenapi.text.tokenizer import Tokenizer as QwenTokenizer

CORPUS = [
    "the cat sat on the mat",
    "你好，世界。今天天气很好",
    "def f(x):\n    return x + 1\n",
    "👩‍💻🎉",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small-tokenizer")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<think>"), AddedToken("</think>"), AddedToken("é o Ġ")])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return folder


@pytest.fixture(scope="session")
def small(small_dir: Path) -> QwenTokenizer:
    return QwenTokenizer(small_dir)


@pytest.fixture(scope="session")
def assets() -> Path:
    folder = os.environ.get("QWEN_ASSETS")
    if not folder:
        pytest.skip("QWEN_ASSETS names no folder with Qwen's tokenizer.json and chat templates")
    return Path(folder)


@pytest.fixture(scope="session")
def qwen(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], QwenTokenizer]:
    """Return the real tokenizer with the named template, made once each."""
    made: dict[str, QwenTokenizer] = {}

    def make(template: str) -> QwenTokenizer:
        if template not in made:
            folder = tmp_path_factory.mktemp(template)
            (folder / "tokenizer.json").symlink_to(assets / "tokenizer.json")
            shutil.copy(assets / f"chat_template.{template}.jinja", folder / "chat_template.jinja")
            made[template] = QwenTokenizer(folder)
        return made[template]

    return make
