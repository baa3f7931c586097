"""Thoughts and tool calls on the chat page, in a real browser.

A thought is one fold, whether the server tells it from the content or leaves its markup there; a
call is a card. The streams are made here, cut anywhere.
"""

import json
import re
from typing import Any

import pytest

from tests.e2e.browser.chromium import Page, browser_fixture  # noqa: F401

THOUGHT = "Is it 你好？ 1 < 2 </thin"
WORDS = "So **it** is: `<b>` 😀"
HALVES = THOUGHT[:9], THOUGHT[9:]
BY_MARKUP = [
    {"content": piece}
    for piece in ("<thi", f"nk>\n{HALVES[0]}", f"{HALVES[1]}\n</", f"think>\n\n{WORDS}")
]
BY_ITS_END = [{"content": piece} for piece in (THOUGHT, "\n</thi", f"nk>\n\n{WORDS}")]
BY_NAME = [{"reasoning": HALVES[0]}, {"reasoning": HALVES[1]}, {"content": WORDS}]
BY_BOTH_NAMES = [
    {"reasoning": THOUGHT, "reasoning_content": THOUGHT},
    {"content": WORDS[:3]},
    {"content": WORDS[3:]},
]
WAYS = {"markup": BY_MARKUP, "end": BY_ITS_END, "name": BY_NAME, "both": BY_BOTH_NAMES}

WEATHER = '{"city": "北京", "days": [1, 2], "note": "<img src=x onerror=\\"window.pwned=1\\">"}'
CALLS = [
    {"content": "Let me look."},
    {"tool_calls": [{"index": 0, "id": "call_a", "type": "function",
                     "function": {"name": "get_weather", "arguments": ""}}]},
    *({"tool_calls": [{"index": 0, "function": {"arguments": WEATHER[i : i + 5]}}]}
      for i in range(0, len(WEATHER), 5)),
    {"tool_calls": [{"index": 1, "id": "call_b", "type": "function",
                     "function": {"name": "get_time", "arguments": "{}"}}]},
]  # fmt: skip


def stream(deltas: list[dict[str, Any]], finish_reason: str = "stop") -> str:
    """Return a chat completion's stream as a server would write it."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices += [{"index": 0, "delta": {}, "finish_reason": finish_reason}]
    frames = [json.dumps({"choices": [choice]}, ensure_ascii=False) for choice in choices]
    return "".join(f"data: {frame}\n\n" for frame in [*frames, "[DONE]"])


@pytest.fixture
def page(browser, stub_server):
    with browser.open(stub_server.url + "/ui/") as page:
        yield page


def answer_at_every_cut(page: Page, deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the page's Answer says after each delta, and at the end."""
    return page.evaluate(
        "import('/ui/answer.js').then(({ Answer }) => { const answer = new Answer();"
        f" const states = {json.dumps(deltas)}.map((delta) => {{ answer.add(delta);"
        " return answer.parts; }); answer.end(); return [...states, answer.parts]; })"
    )


@pytest.mark.parametrize("deltas", [BY_MARKUP, BY_ITS_END], ids=["markup", "end"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_markup_cut_anywhere_gives_the_same_thought_and_never_shows(page, deltas, size):
    text = "".join(delta["content"] for delta in deltas)
    cut = [{"content": text[i : i + size]} for i in range(0, len(text), size)]
    *states, last = answer_at_every_cut(page, cut)
    assert last == {"thought": THOUGHT, "words": WORDS}
    for state in states:
        shown = state["thought"] if deltas is BY_MARKUP else ""
        assert THOUGHT.startswith(shown) and "think>" not in state["words"]
        if deltas is BY_MARKUP:
            assert WORDS.startswith(state["words"])


@pytest.mark.parametrize(
    "text",
    [
        "a <think>",
        "use <think>\nx\n</think>\nso",
        "it ends with </think>, mostly",
        "<thin",
        "1 <",
        "<thinking>",
    ],
)
def test_words_that_only_look_like_markup_stay_words(page, text):
    assert answer_at_every_cut(page, [{"content": text}])[-1] == {"thought": "", "words": text}
    told = answer_at_every_cut(page, [{"reasoning": "hm"}, {"content": f"<think>{text}"}])
    assert told[-1] == {"thought": "hm", "words": f"<think>{text}"}


def test_arguments_are_laid_out_as_far_as_they_have_come(page):
    value = {
        "a": {"b": [1, 2, {}], "c": 'x, {y}: [z] \\ " 你好'},
        "d": [],
        "e": 12345678901234567890,
    }
    text = json.dumps(value, ensure_ascii=False)
    laid_out = page.evaluate(
        "import('/ui/json_layout.js').then(({ layOut }) => { const text ="
        f" {json.dumps(text)}; return [...text].map((_, i) => layOut(text.slice(0, i + 1))); }})"
    )
    assert laid_out[-1] == json.dumps(value, ensure_ascii=False, indent=2)
    for i, shown in enumerate(laid_out):
        assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", text[: i + 1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cut", [1, 5, 64])
def test_a_thought_is_one_fold_whichever_way_it_comes(page, way, cut):
    page.ask("answerInPieces", body=stream(WAYS[way]), cut=cut)
    page.send("think")
    page.ask("waitUntilIdle")
    assert page.count(".message.bot details.thought") == 1
    assert page.text(".thought summary") == "Thoughts"
    page.click(".thought summary")
    assert page.text(".thought div") == THOUGHT
    assert page.ask("lastAnswer").strip() == "So it is: <b> 😀"
    assert page.count(".note") == page.count(".call") == 0


@pytest.mark.parametrize("way", ["markup", "name"])
def test_a_thought_that_goes_on_says_so_and_no_markup_flashes(page, way):
    whole = stream(WAYS[way])
    middle = whole.index(HALVES[1])
    page.ask("answerInPieces", body=whole[:middle], held=whole[middle:], cut=30, pause=60)
    page.send("think")
    page.ask("waitFor", selector=".thought")
    assert page.text(".thought summary") == "Thinking…"
    page.ask("waitForHeld")
    shown = page.ask("watchTexts", selector=".content, .thought div", start="letGo")
    assert len(shown) > 2 and not [text for text in shown if "think>" in text or "<thi" in text[:4]]
    assert page.text(".thought summary") == "Thoughts"


def test_the_demo_models_thought_is_a_fold(browser, start_server):
    with browser.open(start_server().url + "/ui/") as page:
        page.send("12 + 7 = ?")
        page.ask("waitUntilIdle")
        assert page.text(".thought summary") == "Thoughts"
        assert "<think>" not in page.text("#chat") and page.ask("lastAnswer").strip()


def test_only_thoughts_are_no_answer(page):
    page.ask("answerWith", body=stream([{"reasoning_content": "hm"}]))
    page.send("first")
    page.ask("waitUntilIdle")
    assert page.text(".note") == "The answer is empty."
    page.send("second")
    page.ask("waitUntilIdle")
    assert [m["content"] for m in page.ask("requests")[-1]["messages"]] == ["second"]


def test_the_answer_is_copied_and_remembered_without_its_thought(page):
    page.ask("answerWith", body=stream(BY_BOTH_NAMES))
    page.send("first")
    page.ask("waitUntilIdle")
    page.click(".copy.whole")
    page.ask("waitFor", selector=".copy[data-i18n=copied]")
    page.ask("fill", selector="#input", text="")
    page.ask("press", key="Control+V")
    assert page.ask("value", selector="#input") == WORDS
    page.send("second")
    page.ask("waitUntilIdle")
    assert page.ask("requests")[-1]["messages"] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": WORDS},
        {"role": "user", "content": "second"},
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_tool_call_is_a_card_whose_arguments_stay_text(browser, stub_server, theme):
    with browser.open(stub_server.url + "/ui/", theme=theme, locale="zh-CN") as page:
        page.ask("answerInPieces", body=stream(CALLS, "tool_calls"), cut=11)
        page.send("北京天气")
        page.ask("waitUntilIdle")
        assert page.ask("lastAnswer").strip() == "Let me look."
        cards = page.evaluate(
            "[...document.querySelectorAll('.call')].map((card) => ["
            "card.querySelector('strong').textContent, card.querySelector('pre').textContent])"
        )
        indented = json.dumps(json.loads(WEATHER), ensure_ascii=False, indent=2)
        assert cards == [["get_weather", indented], ["get_time", "{}"]]
        assert page.text(".call .title span") == "工具调用"
        assert page.text(".note") == "模型请求调用工具，但本页面不执行工具。"
        page.ask("waitFor", selector=".call .hljs-string")
        assert page.count(".call img") == 0 and page.evaluate("window.pwned") is None
        page.click("#language-btn")
        assert page.text(".call .title span") == "Tool call"
        paint = "getComputedStyle(document.querySelector('.call .bar')).backgroundColor"
        assert page.evaluate(paint) != page.evaluate(paint.replace(".call .bar", "body"))


def test_cards_stay_when_the_conversation_goes_on_and_only_words_are_sent(page):
    page.ask("answerWith", body=stream(CALLS, "tool_calls"))
    page.send("first")
    page.ask("waitUntilIdle")
    page.send("second")
    page.ask("waitUntilIdle")
    assert page.count(".call") == 4
    assert page.ask("requests")[-1]["messages"] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "Let me look."},
        {"role": "user", "content": "second"},
    ]


def test_arguments_grow_while_they_come(page):
    whole = stream(CALLS, "tool_calls")
    middle = whole.index("get_weather")
    page.ask("answerInPieces", body=whole[:middle], held=whole[middle:], cut=200, pause=60)
    page.send("weather")
    page.ask("waitForHeld")
    shown = page.ask("watchTexts", selector=".call:first-of-type pre", start="letGo")
    indented = json.dumps(json.loads(WEATHER), ensure_ascii=False, indent=2)
    assert len(shown) > 3 and all(indented.startswith(text) for text in shown)


def test_a_phone_shows_a_long_call_without_sideways_scrolling(browser, stub_server):
    call = {"name": "n" * 64, "arguments": json.dumps({"text": "x" * 500})}
    with browser.open(stub_server.url + "/ui/", width=390, height=844) as page:
        page.ask("answerWith", body=stream([{"tool_calls": [{"index": 0, "function": call}]}]))
        page.send("long")
        page.ask("waitUntilIdle")
        assert page.evaluate("document.getElementById('chat').scrollWidth") <= 390
        right = "document.querySelector('.call .copy').getBoundingClientRect().right"
        assert page.evaluate(right) <= 390
