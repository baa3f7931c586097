import pytest

from qwenapi.generation.prompt import bad_word_ids, cut_prompt
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
