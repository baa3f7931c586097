"""The record: what each client was last seen to do, in `record.json`, and as the pages' table.

`pytest tests/clients --record` writes it from the programs that ran; without the option the test of
a client fails where it does more or less than is recorded.
"""

import json
from pathlib import Path
from typing import Any

from tests.clients.clients import CLIENTS

FILE = Path(__file__).with_name("record.json")
# In English and Chinese; by the names the programs use.
COLUMNS = {
    "chat": ("answer", "回答"),
    "stream": ("streamed", "流式回答"),
    "tools": ("tools", "工具"),
    "stream_tools": ("tools, streamed", "流式工具"),
    "schema": ("types, JSON Schema", "类型、JSON Schema"),
    "json": ("JSON mode", "JSON 模式"),
    "reasoning": ("thoughts", "思考"),
}


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def write(name: str, seen: dict[str, Any]) -> None:
    """Put one client's part into the record."""
    known = read() | {name: seen}
    ordered = {key: known[key] for key in CLIENTS if key in known}
    FILE.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


def table(language: int = 0) -> str:
    """Return the record as Markdown: a row a client, in the client's own words."""
    titles = [("client", "客户端")[language], *(words[language] for words in COLUMNS.values())]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, seen in read().items():
        cells = [_cell(seen["proved"].get(capability, ())) for capability in COLUMNS]
        lines.append(f"| {CLIENTS[name].title} {seen['version']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def table_zh() -> str:
    return table(1)


def _cell(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in dict.fromkeys(words)) or "–"
