"""Outputs of models with the messages they stand for: written by hand, and composed of pieces."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, product

from qwenapi.text.output.call_format import CallFormat
from qwenapi.text.output.events import ParsedCall, ParsedOutput, join_events
from qwenapi.text.output.output_parser import OutputParser, Thinking

FORMATS: tuple[CallFormat, ...] = ("hermes", "xml")
MARKERS = ("<tool_call>", "</tool_call>", "<function=", "</function>", "</parameter>", "</think>")
TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "when": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "exact": {"type": "boolean"},
        },
        "required": ["city"],
    },
    "write_file": {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "content": {"type": "string"},
            "options": {"type": "object"},
            "tags": {"type": "array"},
        },
    },
    "now": {},
}


@dataclass(frozen=True)
class Output:
    """What a model wrote, and the message its caller should get."""

    text: str
    call_format: CallFormat
    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    unfinished: tuple[int, ...] = ()
    thinking: Thinking = "off"
    is_cut: bool = False
    tools: dict[str, dict[str, object]] = field(default_factory=lambda: TOOLS, repr=False)

    @property
    def message(self) -> ParsedOutput:
        calls = tuple(
            ParsedCall(name, arguments, index not in self.unfinished)
            for index, (name, arguments) in enumerate(self.calls)
        )
        return ParsedOutput(self.content, self.reasoning, calls)


def parse(output: Output, pieces: Sequence[str] | None = None) -> ParsedOutput:
    parser = OutputParser(output.call_format, output.tools, output.thinking)
    events = [event for piece in pieces or [output.text] for event in parser.push(piece)]
    return join_events([*events, *parser.finish(is_cut=output.is_cut)])


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def xml(name: str, **values: str) -> str:
    parameters = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


VALUES = (
    "Paris",
    "北京，朝阳区",
    "👩‍💻 says \"hi\" & 'bye' \\ / <b>",
    "",
    "\n\nblank lines\n\n",
    '{"nested": "{\\"a\\": [1, \\"}\\"]}"}',
    "```xml\n<tool_call>\n```\nis <function=now> in <parameter=city> text",
    "a </parameter> b </function> c </tool_call> d </think> e",
    "if a < b and c <tool> d: <",
    "line\r\n\ttab",
)
ARGUMENTS = (
    *({"city": value} for value in VALUES),
    {"city": "Rom", "days": -3, "exact": True, "when": None},
)
CALLS: dict[CallFormat, list[tuple[str, tuple[str, str]]]] = {
    "hermes": [
        *(
            (hermes("get_weather", dumps(arguments)), ("get_weather", dumps(arguments)))
            for arguments in ARGUMENTS
        ),
        (hermes("now", "{}"), ("now", "{}")),
    ],
    "xml": [
        *(
            (
                xml(
                    "get_weather", **{k: v if isinstance(v, str) else str(v) for k, v in a.items()}
                ),
                ("get_weather", dumps(a)),
            )
            for a in ARGUMENTS
        ),
        (xml("now"), ("now", "{}")),
    ],
}
# Whatever the format, none of these is a call.
NO_CALLS: dict[CallFormat, list[str]] = {
    "hermes": [
        hermes("unknown", '{"city": "Paris"}'),
        '<tool_call>\n{"name": "get_weather", "arguments": ["Paris"]}\n</tool_call>',
        '<tool_call>\n{"name": "get_weather" "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"arguments": {"city": "Paris"}}\n</tool_call>',
        "<tool_call> is how a call begins.",
        "<tool_call>\n{'name': 'get_weather', 'arguments': {}}\n</tool_call>",
        f"```\n{hermes('now', '{}')}\n```",
        "`<tool_call>`",
        "</tool_call> alone",
    ],
    "xml": [
        xml("unknown", city="Paris"),
        "<tool_call>\n<function=get_weather>\nParis\n</function>\n</tool_call>",
        "<tool_call>\n<function=get_weather\n</function>\n</tool_call>",
        "<tool_call> is how a call begins.",
        f"~~~~xml\n{xml('now')}\n~~~\n~~~~",
        "write <function=now>\n</function> to call",
        "<function=now> is how",
        "</tool_call> alone",
    ],
}
TEXTS = ("", "Let me look.", "一会儿👀。", "a < b </ c\n\nd")


def composed(call_format: CallFormat) -> Iterator[Output]:
    """Yield texts and calls after each other, with and without a thought before them."""
    calls = CALLS[call_format]
    for (before, between, after), at in product(
        product(TEXTS, ("", "\n", "\n\nand\n\n"), TEXTS), range(len(calls))
    ):
        (first, one), (second, two) = calls[at], calls[(at * 5 + 3) % len(calls)]
        gap = "\n\n" if before else ""
        tail = f"\n{after}" if after else ""
        text = f"{before}{gap}{first}{between}{second}{tail}"
        inner = between.rstrip("\n") if before else between.strip("\n")
        content = before + inner + (tail if before or inner else after)
        yield Output(text, call_format, content, calls=(one, two))
        yield Output(
            f"<think>\nWhat?\n\nOh.\n</think>\n\n{text}",
            call_format,
            content,
            "What?\n\nOh.",
            (one, two),
            thinking="possible",
        )
    for number in (1, 10):
        texts, found = zip(*(calls * 2)[:number], strict=True)
        yield Output("\n".join(texts), call_format, calls=found)


def refused(call_format: CallFormat) -> Iterator[Output]:
    """Yield what is no call: beside text, and before a call."""
    call, found = CALLS[call_format][0]
    for text in NO_CALLS[call_format]:
        yield Output(text, call_format, text)
        yield (
            Output(f"So: {text}\nwell", call_format, f"So: {text}\nwell")
            if ("```" not in text and "~~~" not in text)
            else Output(f"So:\n{text}\nwell", call_format, f"So:\n{text}\nwell")
        )
        yield Output(f"{text}\n{call}", call_format, text, calls=(found,))
        yield Output(f"{text}\n</think>\n\nok", call_format, "ok", text, thinking="open")


def cut(call_format: CallFormat) -> Iterator[Output]:
    """Yield every tenth cut of some outputs, without the messages they stand for."""
    for output in islice(composed(call_format), 3, None, 37):
        for end in range(0, len(output.text), 10):
            for is_cut in (False, True):
                yield Output(
                    output.text[:end], call_format, thinking=output.thinking, is_cut=is_cut
                )
