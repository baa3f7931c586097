import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenapi.text.output.code_fence import CodeFence


def inside(text: str) -> bool:
    fence = CodeFence()
    fence.advance(text)
    return fence.is_inside


@pytest.mark.parametrize(
    ("text", "is_inside"),
    [
        ("", False),
        ("a ``` b\n", False),
        ("``\n", False),
        ("```", True),
        ("```py\nx", True),
        ("  - x\n      ```\n", True),
        ("```\nx\n```", True),
        ("```\nx\n```\n", False),
        ("```\nx\n  ````  \r\ny", False),
        ("````\n```\n", True),
        ("```\n~~~\n", True),
        ("~~~ `a`\nx", True),
        ("```\n``` x\n", True),
        ("```code``` and\n", False),
        ("```\n```\n```\n", True),
        (" " * 300 + "```\n", False),
    ],
)
def test_fences_open_and_close_as_in_markdown(text: str, is_inside: bool) -> None:
    assert inside(text) is is_inside


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["`", "```", "~~~", " ", "\n", "x", "\t", "\r", " " * 254])))
def test_pieces_do_not_matter(pieces: list[str]) -> None:
    whole, cut, single = CodeFence(), CodeFence(), CodeFence()
    text = "".join(pieces)
    whole.advance(text)
    for piece in pieces:
        cut.advance(piece)
    for char in text:
        single.advance(char)
    for fence in (cut, single):
        assert fence.is_inside == whole.is_inside
        assert fence.is_at_line_start == whole.is_at_line_start
