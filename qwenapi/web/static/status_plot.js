// Plot: one uPlot in the page's colours and language, made anew when either changes. Knows columns
// of numbers, nothing of where they come from.

import { element } from "./element.js";
import { say, text } from "./i18n.js";
import { HISTORY } from "./status_history.js";

const HEIGHT = 170; // pixels
const LEAST_SPAN = 120; // s
const COLOURS = ["--accent", "--second"];

/** Lines over time in a box of their own; `lines` are the keys of their words. */
export class Plot {
  #box = element("section", "plot");
  #lines;
  #show;
  #top;
  #columns = [[]];
  #plot = null;

  /** `show` makes a text of a value; `top` is the greatest there can be, if that is known. */
  constructor({ parent, title, lines, show, top = null }) {
    this.#top = top;
    this.#lines = lines;
    this.#show = show;
    this.#box.append(say(element("h2"), title));
    parent.append(this.#box);
    new ResizeObserver(() => this.#plot?.setSize(this.#size)).observe(this.#box);
  }

  /** Show columns: the times, then a column for each line. */
  draw(columns) {
    this.#columns = columns;
    if (this.#plot) this.#plot.setData(columns);
    else this.restyle();
  }

  /** Take up the page's colours and words again. */
  restyle() {
    this.#plot?.destroy();
    this.#plot = new uPlot(this.#options, this.#columns, this.#box);
  }

  get #size() {
    const { paddingLeft, paddingRight } = getComputedStyle(this.#box);
    const inner = this.#box.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
    return { width: Math.max(inner, 100), height: HEIGHT };
  }

  get #options() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: colour("--muted"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
    };
    return {
      ...this.#size,
      cursor: { sync: { key: "status" }, drag: { x: false, y: false } },
      scales: {
        x: { range: (plot, least, greatest) => [span(least, greatest), greatest] },
        y: { range: (plot, least, greatest) => [0, this.#top ?? (greatest > 0 ? greatest * 1.1 : 1)] },
      },
      axes: [
        { ...axis, values: (plot, times, i, space, step) => times.map((at) => timeOfDay(at, step < 60)) },
        { ...axis, size: 64, values: (plot, values) => values.map(this.#show) },
      ],
      series: [
        { label: text("time"), value: (plot, at) => (at === null ? "–" : timeOfDay(at, true)) },
        ...this.#lines.map((line, i) => ({
          label: text(line),
          stroke: colour(COLOURS[i]),
          width: 1.5,
          points: { show: false },
          value: (plot, value) => (value === null ? "–" : this.#show(value)),
        })),
      ],
    };
  }
}

/** Return where the axis of time begins: with the data, but neither too near nor too far. */
function span(least, greatest) {
  return Math.max(Math.min(least, greatest - LEAST_SPAN), greatest - HISTORY);
}

function timeOfDay(at, hasSeconds) {
  const second = hasSeconds ? "2-digit" : undefined;
  const parts = { hour: "2-digit", minute: "2-digit", second, hourCycle: "h23" };
  return new Date(at * 1000).toLocaleTimeString(document.documentElement.lang, parts);
}
