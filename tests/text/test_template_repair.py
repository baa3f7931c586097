from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenapi.text.template_repair import repair


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("messages", "repaired"),
    [
        ([], []),
        ([turn("user", "a", name="x")], [turn("user", "a", name="x")]),
        ([turn("developer", "a"), turn("user", "b")], [turn("system", "a"), turn("user", "b")]),
        (
            [
                turn("user", "a"),
                turn("system", "b"),
                turn("assistant", "c"),
                turn("developer", "d"),
            ],
            [turn("system", "b\n\nd"), turn("user", "a"), turn("assistant", "c")],
        ),
        (
            [turn("user", "a"), turn("system", "b"), turn("user", "c"), turn("user", "")],
            [turn("system", "b"), turn("user", "a\n\nc")],
        ),
        (
            [turn("tool", "a", tool_call_id="1"), turn("tool", "b", tool_call_id="2")],
            [turn("tool", "a", tool_call_id="1"), turn("tool", "b", tool_call_id="2")],
        ),
        (
            [
                turn("assistant", "a", reasoning_content="r", tool_calls=[1]),
                turn("assistant", "", tool_calls=[2], prefix=True),
                turn("assistant", "b", reasoning_content="q"),
            ],
            [
                turn(
                    "assistant",
                    "a\n\nb",
                    reasoning_content="r\n\nq",
                    tool_calls=[1, 2],
                    prefix=True,
                )
            ],
        ),
        (
            [turn("user", "a"), turn("user", [{"type": "image"}]), turn("user", "b")],
            [
                turn(
                    "user",
                    [
                        {"type": "text", "text": "a"},
                        {"type": "text", "text": "\n\n"},
                        {"type": "image"},
                        {"type": "text", "text": "\n\n"},
                        {"type": "text", "text": "b"},
                    ],
                )
            ],
        ),
    ],
)
def test_conversations_are_repaired(messages: Any, repaired: Any) -> None:
    assert repair(messages) == repaired


roles = st.sampled_from(["system", "developer", "user", "assistant", "tool"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(roles, st.text("ab", min_size=1))))
def test_repair_leaves_nothing_to_repair_and_loses_nothing(pairs: list[tuple[str, str]]) -> None:
    messages = [turn(role, content) for role, content in pairs]
    repaired = repair(messages)
    assert repair(repaired) == repaired
    assert all(message["role"] != "system" for message in repaired[1:])
    said = "".join(message["content"].replace("\n", "") for message in repaired)
    assert sorted(said) == sorted("".join(content for _, content in pairs))
