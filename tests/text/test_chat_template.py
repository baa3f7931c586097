import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenapi.text.chat_template import MAX_REFUSAL_CHARS, ChatTemplate
from qwenapi.text.errors import TemplateError, TokenizerError
from qwenapi.text.tokenizer import Tokenizer

TEMPLATES = ("Qwen2.5-7B-Instruct", "Qwen3-0.6B", "Qwen3-Coder", "Qwen3.5-4B")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"城市": "北京", "n": [1, {}]}}}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [turn("user", "你好")],
    "system": [turn("system", "Be <b>brief</b> & kind."), turn("user", "'hi' \"there\"")],
    "turns": [turn("user", "a"), turn("assistant", "b\n"), turn("user", "  c\n\n")],
    "thoughts in the text": [
        turn("user", "1+1"),
        turn("assistant", "<think>\nadd\n</think>\n\n2"),
        turn("user", "2+2"),
    ],
    "thoughts apart": [
        turn("user", "1+1"),
        turn("assistant", "2", reasoning_content="add\n"),
    ],
    "tool results": [
        turn("user", "weather"),
        turn("assistant", "", tool_calls=[CALL, CALL]),
        turn("tool", "晴"),
        turn("tool", "雨"),
        turn("assistant", "both"),
    ],
    "emoji and blanks": [turn("user", "👩‍💻\u200d \t"), turn("assistant", ""), turn("user", "")],
}


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.filterwarnings("ignore")
def test_real_templates_render_as_transformers_renders_them(
    qwen: Callable[[str], Tokenizer],
    reference: Callable[[str], Any],
    template: str,
    conversation: str,
    thinking: bool | None,
) -> None:
    messages = CONVERSATIONS[conversation]
    chosen = {} if thinking is None else {"enable_thinking": thinking}
    wanted = reference(template).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **chosen
    )
    tokenizer = qwen(template)
    assert tokenizer.render_chat(messages, enable_thinking=thinking) == wanted
    ids = reference(template)(wanted, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode_chat(messages, enable_thinking=thinking).ids == ids


@pytest.fixture(scope="module")
def reference(assets: Path) -> Callable[[str], Any]:
    """Return transformers' tokenizer with the named template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(assets / "tokenizer.json"))

    def make(template: str) -> Any:
        source = (assets / f"chat_template.{template}.jinja").read_text("utf-8")
        tokenizer.chat_template = source
        return tokenizer

    return make


def test_a_refusal_speaks_the_templates_words() -> None:
    template = ChatTemplate("{{ raise_exception('System first, please.') }}", {})
    with pytest.raises(TemplateError, match=r"refuses this conversation: System first, please\."):
        template.render([])


def test_a_refusal_is_short() -> None:
    template = ChatTemplate("{{ raise_exception(messages[0].content) }}", {})
    with pytest.raises(TemplateError) as caught:
        template.render([turn("user", "x" * 10_000)])
    assert len(str(caught.value)) < MAX_REFUSAL_CHARS + 100


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ nothing.at_all }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(_x=1) %}",
        "{% include 'other' %}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_template_that_fails_says_nothing_of_the_inside(source: str) -> None:
    with pytest.raises(TemplateError, match="cannot render this conversation"):
        ChatTemplate(source, {}).render([turn("user", "a")])


def test_a_template_that_does_not_compile_is_the_operators_fault() -> None:
    with pytest.raises(TokenizerError, match="does not compile: line 1"):
        ChatTemplate("{% if %}", {})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ value | tojson }}", json.dumps({"a": "<é>", "b": [1]}, ensure_ascii=False)),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("a\n    {% if true %}\nb\n    {% endif %}\nc", "a\nb\nc"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ dict(a=1).a }}{{ dict.fromkeys(['k']) }}", "1{'k': None}"),
        ("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}", "2"),
        ("{{ tools is none and documents is none }}", "True"),
    ],
)
def test_templates_find_what_transformers_gives_them(source: str, text: str) -> None:
    assert ChatTemplate(source, {}).render([], value={"a": "<é>", "b": [1]}) == text
