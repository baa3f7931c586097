"""What a right answer is: code is run, JSON and tool calls are parsed, words are sought.

Knows the checks named in heldout/paraphrases.tsv. Code runs in its own process, for 5 s at most.
"""

import json
import re
import subprocess
import sys

_FENCE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
_THINK = re.compile(r"<think>\n(.+?)\n</think>\n\n(.*)", re.DOTALL)
_CALL = re.compile(r"<tool_call>\n(.*)\n</tool_call>", re.DOTALL)
# Python expressions over `f`, the last function defined.
_PROPERTIES = {
    "sort": "all(f(list(a)) in (sorted(a), None) and s(f, a) for a in lists)",
    "factorial": "[f(n) for n in (1, 3, 5)] == [1, 6, 120]",
    "fibonacci": "f(10) in ([0, 1, 1, 2, 3, 5, 8, 13, 21, 34], 55, 34)",
    "gcd": "f(12, 18) == 6 and f(7, 5) == 1",
    "prime": "[n for n in range(20) if f(n)] == [2, 3, 5, 7, 11, 13, 17, 19]",
    "palindrome": "f('level') and not f('python')",
    "reverse": "f('abc') == 'cba'",
    "binary_search": "f([1, 3, 5, 7], 5) == 2 and f([1, 3], 4) == -1",
    "word_count": "f('one two three') == 3",
}
_RUNNER = """
import random
def s(f, a):
    b = list(a)
    result = f(b)
    return (b if result is None else result) == sorted(a)
lists = [[random.randint(-99, 99) for _ in range(n)] for n in range(20)]
names = set(globals())
exec({code!r})
f = [v for k, v in globals().items() if callable(v) and k not in names][-1]
assert {check}
"""


def passes(check: str, answer: str) -> bool:
    """Return whether an answer has the property that `kind:argument` names."""
    kind, _, argument = check.partition(":")
    if kind == "python":
        return runs(code_of(answer), argument)
    if kind in ("java", "js"):
        return _is_code(code_of(answer), kind, argument)
    if kind == "json":
        return _keys(answer) == set(argument.split(","))
    if kind == "tool":
        return called_city(answer) == argument
    if kind == "think":
        match = _THINK.fullmatch(answer)
        return match is not None and _has(match[2], argument)
    return kind == "has" and _has(answer, argument)


def code_of(answer: str) -> str:
    """Return the first fenced block, or the whole answer if there is none."""
    match = _FENCE.search(answer)
    return match[1] if match else answer


def runs(code: str, task: str) -> bool:
    """Return whether Python code defines a function that does the task."""
    program = _RUNNER.format(code=code, check=_PROPERTIES[task])
    command = [sys.executable, "-I", "-c", program]
    try:
        return subprocess.run(command, capture_output=True, timeout=5).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def called_city(answer: str) -> str | None:
    """Return the city of a call of get_weather, or None if the answer is no such call."""
    match = _CALL.fullmatch(answer.strip())
    try:
        call = json.loads(match[1]) if match else {}
        return call["arguments"]["city"] if call.get("name") == "get_weather" else None
    except (ValueError, KeyError, TypeError):
        return None


def _keys(answer: str) -> set[str]:
    try:
        value = json.loads(code_of(answer))
    except ValueError:
        return set()
    return set(value) if isinstance(value, dict) else set()


def _is_code(code: str, kind: str, task: str) -> bool:
    marks = ("static ", ";") if kind == "java" else ("function ", ";")
    is_balanced = all(code.count(a) == code.count(b) for a, b in ("{}", "()", "[]"))
    return is_balanced and all(mark in code for mark in marks) and task in code.lower()


def _has(text: str, alternatives: str) -> bool:
    return any(alternative in text for alternative in alternatives.split("|"))
