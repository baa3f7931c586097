"""Requests in the shape of Claude Code's, made by us: what it sends, not a word of what it says."""

from typing import Any

HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management",
    "anthropic-dangerous-direct-browser-access": "true",
    "x-app": "cli",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
    "user-agent": "claude-cli/2.0.0 (external, cli)",
}
CACHED = {"cache_control": {"type": "ephemeral"}}
NAMES = "Task Bash Glob Grep Read Edit Write NotebookEdit WebFetch TodoWrite WebSearch KillShell"


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def billing(nonce: str) -> dict[str, Any]:
    """Return the first block of the system prompt, which is another in each request."""
    return text(f"x-anthropic-billing-header: cc_version=2.0.0.abc; cch={nonce};")


def tool(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": f"What {name} does",
        "input_schema": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {"path": {"type": "string", "description": "a path"}},
            "required": ["path"],
            "additionalProperties": False,
        },
    }


def request(nonce: str = "0a1b2", **more: Any) -> dict[str, Any]:
    """Return a turn in the middle of a session: two calls were made, one of them failed."""
    return {
        "model": "claude-sonnet-4-5-20250929",
        "max_tokens": 32000,
        "stream": True,
        "temperature": 1,
        "metadata": {"user_id": f"user_{'0' * 64}_account__session_00000000-0000-4000-8000"},
        "system": [
            billing(nonce),
            text("You help with code.", **CACHED),
            text("The folder is /tmp/x.", **CACHED),
        ],
        "tools": [tool(name) for name in NAMES.split()],
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "messages": [
            {"role": "user", "content": [text("<system-reminder>be kind</system-reminder>")]},
            {"role": "user", "content": [text("Fix it.", **CACHED)]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"},
                    {"type": "redacted_thinking", "data": "b3BhcXVl"},
                    text("I look at two files."),
                    {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a"}},
                    {"type": "tool_use", "id": "toolu_2", "name": "Read", "input": {"path": "b"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "1 x = 1"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_2",
                        "content": [text("No such file."), text("Look again.")],
                        "is_error": True,
                        **CACHED,
                    },
                    text("Go on.", **CACHED),
                ],
            },
        ],
        **more,
    }
