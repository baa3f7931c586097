from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from qwenapi.errors import BadRequest
from qwenapi.generation.prompt import (
    FIM_TOKENS,
    bad_word_ids,
    cut_prompt,
    fill_in_the_middle,
    fim_stops,
)
from qwenapi.settings.table import etc_dir
from qwenapi.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(etc_dir() / "models/demo")


@pytest.mark.parametrize(
    ("limit", "max_tokens", "kept"),
    [(None, None, 10), (3, None, 3), (10, 5, 10), (99, None, 10), (-1, 4, 4), (-1, None, 7),
     (-1, 99, 1)],
)  # fmt: skip
def test_a_prompt_keeps_its_end(limit: int | None, max_tokens: int | None, kept: int) -> None:
    ids = list(range(10))
    assert cut_prompt(ids, limit, max_tokens, 8) == ids[-kept:]


def test_a_bad_word_is_also_bad_behind_a_space(demo: Tokenizer) -> None:
    for word in ("the", "hash table", "你好"):
        for ids in bad_word_ids(demo, [word]):
            assert demo.decode(ids).strip() == word
    both = bad_word_ids(demo, ["the"])
    assert [demo.decode(ids) for ids in both] == ["the", " the"]


def test_a_suffix_is_asked_for_by_the_models_own_tokens(tmp_path: Path) -> None:
    backend = Backend.from_file(str(etc_dir() / "models/demo/tokenizer.json"))
    backend.add_special_tokens([*FIM_TOKENS, "<|file_sep|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    ids = fill_in_the_middle(tokenizer, tokenizer.encode("def f("), "  return x")
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|fim_prefix|>def f(<|fim_suffix|>  return x<|fim_middle|>"
    )
    assert len(fim_stops(tokenizer)) == 4


def test_a_model_without_these_tokens_refuses_a_suffix(demo: Tokenizer) -> None:
    with pytest.raises(BadRequest) as caught:
        fill_in_the_middle(demo, [1], "x")
    assert caught.value.param == "suffix"
