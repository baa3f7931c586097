"""Draws the shipped Grafana dashboard as a page of HTML, with a Prometheus' answers to its queries.

It has Grafana's grid and the panels' titles, units and legends, and none of Grafana's own style:
the picture shows what is on the board, and does not pass for a screenshot. Knows only the kinds of
panel that it draws.
"""

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tests.ops.prometheus import VARIABLES, Prometheus, replaced

Panel = Mapping[str, Any]
Series = tuple[str, list[tuple[float, float]]]  # its legend, and (seconds, value)

WIDTH, ROW_HEIGHT, GAP, AXIS_WIDTH = 1120, 30, 8, 64
COLOURS = ("#5b50d6", "#2e7040", "#a5480b", "#1f5fae", "#b3261e", "#7a3ea8", "#827717")
UNITS: Mapping[str, Callable[[float], str]] = {
    "short": lambda value: f"{value:,.4g}",
    "reqps": lambda value: f"{value:.2g} req/s",
    "percentunit": lambda value: f"{value:.0%}",
    "s": lambda value: f"{value:.3g} s" if value >= 1 or not value else f"{value * 1000:.3g} ms",
}
STYLE = """
body { margin: 0; background: #faf9f7; color: #22242a; font: 13px system-ui, sans-serif; }
main { position: relative; } section { position: absolute; box-sizing: border-box; overflow: hidden;
border: 1px solid #e2e0db; border-radius: 6px; background: #fff; padding: 6px 10px; }
h2 { margin: 0; font-size: 15px; } h3 { margin: 0; font-size: 12px; font-weight: 600; }
.row { position: absolute; padding-top: 8px; } .stat { font-size: 28px; font-weight: 600;
text-align: center; padding-top: 12px; } .legend { position: absolute; bottom: 5px; left: 10px;
white-space: nowrap; font-size: 11px; color: #63666f; } .legend i { display: inline-block;
width: 10px; height: 3px; margin: 0 4px 3px 0; } .legend span { margin-right: 10px; }
svg text { font: 10px system-ui, sans-serif; fill: #63666f; } svg path { fill: none; }
"""


def page(panels: Sequence[Panel], prometheus: Prometheus) -> str:
    """Return the page; the panels keep the places they have on the board."""
    body = "".join(draw(panel, prometheus) for panel in panels)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * ROW_HEIGHT
    main = f"<main style='width: {WIDTH}px; height: {height}px'>{body}</main>"
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{main}"


def draw(panel: Panel, prometheus: Prometheus) -> str:
    place, title = panel["gridPos"], html.escape(panel["title"])
    left, top = place["x"] * WIDTH / 24 + GAP / 2, place["y"] * ROW_HEIGHT + GAP / 2
    width, height = place["w"] * WIDTH / 24 - GAP, place["h"] * ROW_HEIGHT - GAP
    style = f"left: {left}px; top: {top}px; width: {width}px; height: {height}px"
    if panel["type"] == "row":
        return f"<h2 class=row style='{style}'>{title}</h2>"
    series = [one for target in panel["targets"] for one in ask(target, prometheus)]
    unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    inside = KINDS[panel["type"]](series, unit, width - 20, height - 55, panel)
    return f"<section style='{style}'><h3>{title}</h3>{inside}</section>"


def ask(target: Mapping[str, Any], prometheus: Prometheus) -> Iterator[Series]:
    expression = replaced(target["expr"], VARIABLES)
    for found in prometheus.series(expression, is_instant=target.get("instant", False)):
        labels = {f"{{{{{name}}}}}": value for name, value in found["metric"].items()}
        legend = re.sub(r"{{\w+}}", "", replaced(target["legendFormat"], labels))
        numbers = [(float(at), float(value)) for at, value in found["values"]]
        yield legend, [(at, value) for at, value in numbers if value == value]  # no NaN


def stat(
    series: Sequence[Series],
    unit: Callable[[float], str],
    width: float,
    height: float,
    panel: Panel,
) -> str:
    names_it = panel.get("options", {}).get("textMode") == "name"
    legend, values = series[0]
    value = values[-1][1]
    words = {
        number: option["text"]
        for mapping in panel["fieldConfig"]["defaults"].get("mappings", [])
        for number, option in mapping["options"].items()
    }
    said = legend if names_it else words.get(f"{value:g}", unit(value))
    return f"<div class=stat>{html.escape(said)}</div>"


def lines(
    series: Sequence[Series],
    unit: Callable[[float], str],
    width: float,
    height: float,
    panel: Panel,
) -> str:
    drawn = [one for one in series if one[1]]
    first, last = bounds(at for _, points in drawn for at, _ in points)
    _, most = bounds(value for _, points in drawn for _, value in points)
    left, top = AXIS_WIDTH, 8.0
    paths = []
    for (_, points), colour in zip(drawn, COLOURS * len(drawn), strict=False):
        places = (
            f"{left + (at - first) / (last - first) * (width - left):.1f},"
            f"{top + (1 - value / most) * (height - top):.1f}"
            for at, value in points
        )
        paths.append(f"<path stroke='{colour}' stroke-width='1.5' d='M{' L'.join(places)}'/>")
    return (
        f"<svg width='{width}' height='{height + 6}'>{axis(most, unit, left, top, width, height)}"
        f"{''.join(paths)}</svg>{legend_of([name for name, _ in drawn])}"
    )


def axis(
    most: float,
    unit: Callable[[float], str],
    left: float,
    top: float,
    width: float,
    height: float,
) -> str:
    drawn = ""
    for part in (0, 0.5, 1):
        y = top + (1 - part) * (height - top)
        drawn += f"<line x1='{left}' x2='{width}' y1='{y}' y2='{y}' stroke='#e2e0db'/>"
        drawn += f"<text x='{left - 5}' y='{y + 3}' text-anchor='end'>{unit(most * part)}</text>"
    return drawn


def legend_of(names: Sequence[str]) -> str:
    entries = (
        f"<span><i style='background: {colour}'></i>{html.escape(name)}</span>"
        for name, colour in zip(names, COLOURS * len(names), strict=False)
    )
    return f"<div class=legend>{''.join(entries)}</div>"


def heatmap(
    series: Sequence[Series],
    unit: Callable[[float], str],
    width: float,
    height: float,
    panel: Panel,
) -> str:
    """Draw cumulative buckets as what each holds by itself, the slowest on top."""
    ordered = sorted(series, key=lambda one: float(one[0].replace("+Inf", "inf")))
    below: dict[float, float] = {}
    rows = []
    for legend, points in ordered:
        held = [(at, max(value - below.get(at, 0), 0)) for at, value in points]
        below = dict(points)
        if any(value for _, value in held):
            rows.append((legend, held))
    first, last = bounds(at for _, held in rows for at, _ in held)
    _, most = bounds(value for _, held in rows for _, value in held)
    left, tall = AXIS_WIDTH, height / len(rows)
    wide = (width - left) / (last - first + 1)
    drawn = ""
    for number, (legend, held) in enumerate(reversed(rows)):
        said = "more" if legend == "+Inf" else f"≤ {unit(float(legend))}"
        y = number * tall
        drawn += f"<text x='{left - 5}' y='{y + tall / 2 + 4}' text-anchor='end'>{said}</text>"
        for at, value in held:
            x = left + (at - first) * wide
            drawn += (
                f"<rect x='{x:.1f}' y='{y:.1f}' width='{wide:.1f}' height='{tall - 1:.1f}'"
                f" fill='{COLOURS[0]}' opacity='{value / most:.2f}'/>"
            )
    return f"<svg width='{width}' height='{height + 30}'>{drawn}</svg>"


def bounds(numbers: Iterator[float]) -> tuple[float, float]:
    """Return the least and the greatest, never the same and never both 0."""
    known = list(numbers) or [0.0]
    least, greatest = min(known), max(known)
    return least, greatest if greatest > least or greatest > 0 else least + 1


KINDS = {"stat": stat, "timeseries": lines, "heatmap": heatmap}
