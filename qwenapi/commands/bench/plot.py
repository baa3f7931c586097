"""Plot: throughput against latency as an SVG, a line for each server, a point for each load.

Along x the time per output token, as its callers feel it; along y the output tokens/s of all
streams together. Up and to the left is better. Written by hand: a picture of two lines needs no
library. Colours follow the reader's light or dark.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from qwenapi.commands.bench.comparison import Comparison
from qwenapi.commands.bench.load import BenchResult

WIDTH, HEIGHT = 760, 500
LEFT, RIGHT, BOTTOM = 72, 28, 62
LEGEND, LINE_HEIGHT = 82, 22
MOST_TICKS = 7
MOST_LETTERS = 100
MOST_COVERED = 60.0  # of a label, before it is left out
TITLE = "Throughput and latency by number of streams"
POINTS = "at each point: the number of streams"
ALONG_X = "time per output token, median of requests, ms (less is better)"
ALONG_Y = "output tokens/s of all streams (more is better)"
STYLE = """
  svg { --ground: #fff; --ink: #1f2328; --muted: #5f6872; --grid: #e4e7eb; --a: #2458c8;
    --b: #b4530f }
  @media (prefers-color-scheme: dark) {
    svg { --ground: #15181d; --ink: #e7e9ec; --muted: #9ea7b1; --grid: #2c3138; --a: #86acff;
      --b: #f5a66b }
  }
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink) }
  .title { font-size: 16px; font-weight: 600 }
  .muted { fill: var(--muted) }
  .end { text-anchor: end }
  .middle { text-anchor: middle }
  .grid { stroke: var(--grid) }
  .a { --own: var(--a) }
  .b { --own: var(--b) }
  .line { fill: none; stroke: var(--own); stroke-width: 2.5; stroke-linejoin: round }
  .mark { fill: var(--own); stroke: var(--ground); stroke-width: 1.5 }
  .label { fill: var(--own); font-weight: 600; paint-order: stroke; stroke: var(--ground);
    stroke-width: 4px; stroke-linejoin: round }
"""


class Point(NamedTuple):
    """What a server gave at a number of streams."""

    streams: int
    tpot_ms: float
    tokens_per_second: float


@dataclass(frozen=True)
class Line:
    """A server's name and its points."""

    name: str
    points: tuple[Point, ...]


class Spot(NamedTuple):
    """A place on the picture."""

    x: float
    y: float


class Taken(NamedTuple):
    """What is drawn `size` around a place, and how bad it is to cover it."""

    spot: Spot
    size: float
    weight: float


@dataclass(frozen=True)
class Scale:
    """How values become places along one axis, which begins and ends at a tick."""

    ticks: tuple[float, ...]
    start: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> "Scale":
        """Return one that all values fit on; it begins at 0 unless they lie close together."""
        largest = max(values) or 1.0
        lowest = min(values) if min(values) > largest / 2 else 0.0
        margin = (largest - lowest) / 12 or largest / 4
        if lowest:
            lowest -= margin
        step = _step(largest + margin - lowest)
        first, last = math.floor(lowest / step), math.ceil((largest + margin) / step)
        return cls(tuple(step * i for i in range(first, last + 1)), start, end)

    def place(self, value: float) -> float:
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return self.start + (self.end - self.start) * share


def point(result: BenchResult) -> Point:
    return Point(result.concurrency, result.tpot_ms.get("p50", 0.0), result.tokens_per_second)


def mean_point(comparison: Comparison, side: int) -> Point:
    """Return the geometric means of one server, 0 for A and 1 for B, over all rounds."""
    tpot = comparison.means(lambda result: result.tpot_ms["p50"])[side]
    return Point(
        comparison.concurrency, tpot, comparison.means(lambda r: r.tokens_per_second)[side]
    )


def draw(lines: Sequence[Line], conditions: str) -> str:
    """Return the picture of one line or two."""
    top = LEGEND + LINE_HEIGHT * len(lines) + 32
    points = [point for line in lines for point in line.points]
    x = Scale.of([point.tpot_ms for point in points], LEFT, WIDTH - RIGHT)
    y = Scale.of([0.0, *(point.tokens_per_second for point in points)], HEIGHT - BOTTOM, top)
    spots = [
        [Spot(x.place(p.tpot_ms), y.place(p.tokens_per_second)) for p in line.points]
        for line in lines
    ]
    body = [
        *_head(lines, conditions),
        *_axes(x, y),
        *(_path(spots[i], "ab"[i]) for i in reversed(range(len(lines)))),
        *(_mark(spot, "ab"[i]) for i in reversed(range(len(lines))) for spot in spots[i]),
        *_labels(lines, spots),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" role="img" aria-labelledby="title desc">\n'
        f'<title id="title">{TITLE}</title>\n'
        f'<desc id="desc">{escape(_in_words(lines))}</desc>\n<style>{STYLE}</style>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" style="fill: var(--ground)"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _head(lines: Sequence[Line], conditions: str) -> Iterator[str]:
    yield _text(24, 32, TITLE, "title")
    yield _text(24, 53, _cut(conditions), "muted")
    for i, line in enumerate(lines):
        at = LEGEND + LINE_HEIGHT * i
        yield _path([Spot(24, at - 4), Spot(52, at - 4)], "ab"[i])
        yield _mark(Spot(38, at - 4), "ab"[i])
        letter = f"{'AB'[i]}  " if len(lines) > 1 else ""
        yield _text(62, at, _cut(letter + line.name))


def _axes(x: Scale, y: Scale) -> Iterator[str]:
    for value in y.ticks:
        at = y.place(value)
        yield f'<path class="grid" d="M{x.start} {at:.1f}H{x.end}"/>'
        yield _text(x.start - 10, at + 4.5, _number(value), "muted end")
    for value in x.ticks:
        at = x.place(value)
        yield f'<path class="grid" d="M{at:.1f} {y.start}v5"/>'
        yield _text(at, y.start + 21, _number(value), "muted middle")
    yield _text(24, y.end - 16, ALONG_Y, "muted")
    yield _text(x.end, y.end - 16, POINTS, "muted end")
    yield _text(x.end, HEIGHT - 14, ALONG_X, "muted end")


def _labels(lines: Sequence[Line], spots: Sequence[Sequence[Spot]]) -> Iterator[str]:
    """Yield each point's number of streams where it covers least of what is drawn already; first
    the ends of lines, then what lies between and finds room.
    """
    taken = [Taken(spot, 8.0, 20.0) for own in spots for spot in own]
    taken += [Taken(spot, 2.0, 1.0) for own in spots for spot in _along(own)]
    for i, k in sorted(_numbers(spots), key=lambda at: 0 < at[1] < len(spots[at[0]]) - 1):
        spot, is_end = spots[i][k], k in (0, len(spots[i]) - 1)
        words = str(lines[i].points[k].streams)
        reach = 4.2 * len(words) + 1
        places = _around(spot, reach, i)
        if is_end:
            places += [Spot(2 * near.x - spot.x, 2 * near.y - spot.y) for near in places]
        least, _, best = min((_covered(at, reach, taken), k, at) for k, at in enumerate(places))
        if is_end or least <= MOST_COVERED:
            taken += [Taken(Spot(best.x + reach * at, best.y), 7.0, 20.0) for at in (-0.7, 0, 0.7)]
            yield _text(best.x, best.y + 4.5, words, f"label middle {'ab'[i]}")


def _numbers(spots: Sequence[Sequence[Spot]]) -> list[tuple[int, int]]:
    return [(i, k) for i in range(len(spots)) for k in range(len(spots[i]))]


def _around(spot: Spot, reach: float, line: int) -> list[Spot]:
    """Return where a label may stand, the likeliest first: above the first line, below the other,
    so that two near lines keep theirs apart.
    """
    turns = (-1, 1) if line == 0 else (1, -1)
    sides = [Spot(spot.x + (reach + 13) * turn, spot.y) for turn in turns]
    over = [Spot(spot.x, spot.y + 19 * turn) for turn in turns]
    across = [
        Spot(spot.x + (reach + 8) * side, spot.y + 14 * turn) for turn in turns for side in (-1, 1)
    ]
    return [*over, *sides, *across]


def _covered(at: Spot, reach: float, taken: Sequence[Taken]) -> float:
    """Return how much a label `reach` to both sides lies on what is taken, or beyond the plot."""
    outside = max(0.0, LEFT + 4 + reach - at.x) + max(0.0, at.x + reach - WIDTH + RIGHT / 2)
    below = max(0.0, at.y + 9 - HEIGHT + BOTTOM)
    covered = 0.0
    for spot, size, weight in taken:
        near_x = reach + size - abs(spot.x - at.x)
        near_y = 6 + size - abs(spot.y - at.y)
        if near_x > 0 and near_y > 0:
            covered += weight * min(near_x, near_y)
    return covered + 100 * (outside + below)


def _along(spots: Sequence[Spot]) -> Iterator[Spot]:
    """Yield places on the line through these, some points apart."""
    for one, other in zip(spots, spots[1:], strict=False):
        steps = max(1, int(math.dist(one, other) / 6))
        for i in range(1, steps):
            part = i / steps
            yield Spot(one.x + (other.x - one.x) * part, one.y + (other.y - one.y) * part)


def _path(spots: Sequence[Spot], name: str) -> str:
    return f'<path class="line {name}" d="M{" L".join(f"{s.x:.1f} {s.y:.1f}" for s in spots)}"/>'


def _mark(spot: Spot, name: str) -> str:
    """Return a disc, or a square that shows behind one, for who does not tell colours apart."""
    if name == "a":
        return f'<circle class="mark a" cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="4.5"/>'
    corner = f'x="{spot.x - 6.5:.1f}" y="{spot.y - 6.5:.1f}"'
    return f'<rect class="mark b" {corner} width="13" height="13" rx="2"/>'


def _text(x: float, y: float, words: str, names: str = "") -> str:
    named = f' class="{names}"' if names else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named} xml:space="preserve">{escape(words)}</text>'


def _in_words(lines: Sequence[Line]) -> str:
    return ". ".join(
        f"{line.name}: "
        + ", ".join(
            f"{p.streams} streams {p.tokens_per_second:.1f} tokens/s at {p.tpot_ms:.1f} ms a token"
            for p in line.points
        )
        for line in lines
    )


def _step(reach: float) -> float:
    """Return the least round step that reaches as far in few ticks."""
    power = 10.0 ** math.floor(math.log10(reach / MOST_TICKS))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if reach <= MOST_TICKS * power * step)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{round(value, 6):g}"


def _cut(words: str) -> str:
    return words if len(words) <= MOST_LETTERS else words[: MOST_LETTERS - 1] + "…"
