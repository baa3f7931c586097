"""Events of one output, as the parser finds them, and the whole message they add up to.

A call without `CallFinished` was cut, or broke after its arguments had begun: they are as the model
wrote them, and no JSON object. Ids of calls are the renderer's to make.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Text:
    """More content."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the thought."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A call of a known tool; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments, as JSON text."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class CallFinished:
    """The call's arguments are complete: joined, they are one JSON object."""

    index: int


Event = Text | Reasoning | CallStarted | Arguments | CallFinished


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One whole call; `arguments` is a JSON object if `is_finished`."""

    name: str
    arguments: str
    is_finished: bool


@dataclass(frozen=True, slots=True)
class ParsedOutput:
    """One whole message. Empty strings where the model wrote nothing."""

    content: str
    reasoning: str
    calls: tuple[ParsedCall, ...]


def join_events(events: Iterable[Event]) -> ParsedOutput:
    """Return the message that the events of one output add up to."""
    content: list[str] = []
    reasoning: list[str] = []
    names: list[str] = []
    fragments: list[list[str]] = []
    finished: set[int] = set()
    for event in events:
        match event:
            case Text(text):
                content.append(text)
            case Reasoning(text):
                reasoning.append(text)
            case CallStarted(_, name):
                names.append(name)
                fragments.append([])
            case Arguments(index, fragment):
                fragments[index].append(fragment)
            case CallFinished(index):
                finished.add(index)
    calls = tuple(
        ParsedCall(name, "".join(parts), index in finished)
        for index, (name, parts) in enumerate(zip(names, fragments, strict=True))
    )
    return ParsedOutput("".join(content), "".join(reasoning), calls)


def merge_events(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the events with neighbours of one kind made one."""
    for kind, group in groupby(events, type):
        if kind is Text:
            yield Text("".join(event.text for event in group if isinstance(event, Text)))
        elif kind is Reasoning:
            yield Reasoning("".join(event.text for event in group if isinstance(event, Reasoning)))
        elif kind is Arguments:
            # Of one call: between two calls' arguments stands a CallStarted.
            pieces = [event for event in group if isinstance(event, Arguments)]
            yield Arguments(pieces[0].index, "".join(piece.fragment for piece in pieces))
        else:
            yield from group
