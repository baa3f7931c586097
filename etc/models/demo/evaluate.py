"""The held-out score: headlines by category and paraphrases by their property, answered greedily.

Knows the two held-out files. What an answer must be like is in `checks.py`.
"""

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from checks import passes
from data.tasks_news import CATEGORIES_EN, CATEGORIES_ZH, SYSTEM_EN, SYSTEM_ZH
from data.wording import is_chinese
from transformers import AutoModelForCausalLM, AutoTokenizer

TURN = " ‖ "
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Dialog(NamedTuple):
    """What the model is asked next."""

    messages: list[dict[str, str]]
    tools: list[dict[str, object]]
    enable_thinking: bool = False


Answer = Callable[[list[Dialog]], list[str]]


class Score(NamedTuple):
    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked

    def __str__(self) -> str:
        return f"{self.right}/{self.asked} = {self.share:.0%}"


def print_scores(model_dir: Path, heldout: Path) -> None:
    """Answer all held-out questions with a model on disk and print how many are right."""
    answer = transformers_answer(model_dir)
    news = news_scores(answer, heldout)
    for name, score in news.items():
        print(f"{name:24} {score}")
    score, failed = paraphrase_score(answer, heldout)
    print(f"{'paraphrases':24} {score}")
    for line in failed:
        print("  failed:", line)


def news_scores(answer: Answer, heldout: Path) -> dict[str, Score]:
    """Return the score of each category, of each language and over all."""
    rows = _rows(heldout / "headlines.tsv")
    texts = answer([_news_dialog(row["headline"]) for row in rows])
    right: dict[str, list[bool]] = defaultdict(list)
    for row, text in zip(rows, texts, strict=True):
        is_zh = is_chinese(row["headline"])
        english = CATEGORIES_EN[CATEGORIES_ZH.index(row["category"])]
        is_right = text.strip() == (row["category"] if is_zh else english)
        for name in (row["category"] + " " + english, "zh" if is_zh else "en", "all"):
            right[name].append(is_right)
    return {name: Score(sum(hits), len(hits)) for name, hits in right.items()}


def paraphrase_score(answer: Answer, heldout: Path) -> tuple[Score, list[str]]:
    """Return the score of the paraphrases, and those that failed with their answers."""
    rows = _rows(heldout / "paraphrases.tsv")
    prompts = [row["prompt"] for row in rows]
    texts = _last_answers(answer, prompts)
    failed = [
        f"{row['id']}: {row['prompt']} => {text!r}"
        for row, text in zip(rows, texts, strict=True)
        if not passes(row["check"], text)
    ]
    return Score(len(rows) - len(failed), len(rows)), failed


def transformers_answer(model_dir: Path) -> Answer:
    """Return a greedy answerer over transformers."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()

    def answer(dialogs: list[Dialog]) -> list[str]:
        texts = [prompt_of(tokenizer, dialog) for dialog in dialogs]
        answers: list[str] = []
        for start in range(0, len(texts), 32):
            inputs = tokenizer(texts[start : start + 32], return_tensors="pt", padding=True)
            inputs.pop("token_type_ids", None)
            with torch.no_grad():
                ids = model.generate(**inputs, do_sample=False, max_new_tokens=256)
            new = ids[:, inputs["input_ids"].shape[1] :]
            answers += tokenizer.batch_decode(new, skip_special_tokens=True)
        return answers

    return answer


def prompt_of(tokenizer, dialog: Dialog) -> str:  # type: ignore[no-untyped-def]
    """Return the text the template makes of a dialog."""
    text: str = tokenizer.apply_chat_template(
        dialog.messages,
        tools=dialog.tools or None,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=dialog.enable_thinking,
    )
    return text


def _news_dialog(headline: str) -> Dialog:
    names, form = (
        ("、".join(CATEGORIES_ZH), SYSTEM_ZH)
        if is_chinese(headline)
        else (", ".join(CATEGORIES_EN), SYSTEM_EN)
    )
    system = {"role": "system", "content": form.format(c=names)}
    return Dialog([system, {"role": "user", "content": headline}], [])


def _last_answers(answer: Answer, prompts: list[str]) -> list[str]:
    """Ask every prompt turn by turn, its own earlier answers in the history."""
    parts = [_bare(prompt).split(TURN) for prompt in prompts]
    messages: list[list[dict[str, str]]] = [[] for _ in prompts]
    last = [""] * len(prompts)
    for depth in range(max(map(len, parts))):
        due = [i for i, turns in enumerate(parts) if depth < len(turns)]
        for i in due:
            messages[i].append({"role": "user", "content": parts[i][depth]})
        for i, text in zip(
            due, answer([_dialog(prompts[i], messages[i]) for i in due]), strict=True
        ):
            messages[i].append({"role": "assistant", "content": text})
            last[i] = text
    return last


def _dialog(prompt: str, messages: list[dict[str, str]]) -> Dialog:
    tools = [WEATHER_TOOL] if prompt.endswith("@weather") else []
    return Dialog(list(messages), tools, enable_thinking=prompt.endswith("@think"))


def _bare(prompt: str) -> str:
    return prompt.removesuffix(" @weather").removesuffix(" @think")


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
