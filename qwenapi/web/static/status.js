// The status page: asks the server how it is, every two seconds, and shows it.

import { element } from "./element.js";
import { Failure } from "./failure.js";
import { say, switchLanguage, translatePage } from "./i18n.js";
import { History } from "./status_history.js";
import { Plot } from "./status_plot.js";
import "./status_words.js";
import { switchTheme } from "./theme.js";

const INTERVAL = 2000; // ms
const PATIENCE = 5000; // ms, for one answer
const STATUS = new URL("status.json", import.meta.url);
const COLUMNS = ["engine", "device", "state", "running", "waiting", "cache", "tokens", "restarts"];
// Of hybrid models, behind the cache.
const STATE_COLUMNS = ["stateSlots", "snapshots", "snapshotHits"];

const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString(document.documentElement.lang, {
  maximumFractionDigits: value < 10 ? 1 : 0,
});
const percent = (value) => `${number(100 * value)}%`;
const duration = (value) => (value < 1 ? `${number(1000 * value)} ms` : `${value.toFixed(2)} s`);
const orDash = (show, value) => (value === null ? "–" : show(value));

/** What is on the page, and the readings it is made of. */
class StatusPage {
  #history = new History();
  #plots = [
    ["requests", number, { running: "running", waiting: "waiting" }],
    ["tokens", number, { rate: "tokens" }],
    ["firstToken", duration, { p50: "firstTokenP50", p95: "firstTokenP95" }],
    ["cache", percent, { cache: "cache" }, 1],
  ].map(([title, show, lines, top]) => ({
    plot: new Plot({ parent: byId("plots"), title, show, lines: Object.values(lines), top }),
    names: Object.keys(lines),
  }));
  #answeredAt = Date.now();
  #isFirst = true;
  #draw = () => {}; // shows the last reading again, after a change of language

  /** Ask once, show what comes or that nothing does; return whether to ask again by itself. */
  async ask() {
    try {
      this.#show(await this.#read());
    } catch (thrown) {
      const failure = Failure.of(thrown);
      this.#showFailure(failure);
      return failure.kind !== "key";
    }
    return true;
  }

  /** Take up colours and words again. */
  restyle() {
    for (const { plot } of this.#plots) plot.restyle();
    this.#draw();
  }

  async #read() {
    const key = byId("key").value;
    const response = await fetch(`${STATUS}?history=${this.#isFirst ? 1 : 0}`, {
      headers: key ? { Authorization: `Bearer ${key}` } : {},
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (!response.ok) throw await Failure.ofResponse(response);
    return response.json();
  }

  #show(reading) {
    this.#answeredAt = Date.now();
    this.#isFirst = false;
    byId("gone").hidden = byId("key-row").hidden = true;
    byId("board").classList.remove("stale");
    const engines = reading.engines.map((engine) => ({
      ...engine, rate: this.#history.rateOf(engine.engine, reading),
    }));
    const rate = this.#history.add(reading);
    for (const { plot, names } of this.#plots) plot.draw(this.#history.columns(names));
    this.#draw = () => {
      showReady(reading.ready);
      showFigures(reading, rate);
      showAlerts(reading.alerts);
      showEngines(engines);
    };
    this.#draw();
  }

  #showFailure(failure) {
    byId("board").classList.add("stale");
    byId("key-row").hidden = failure.kind !== "key";
    byId("gone").hidden = failure.kind === "key" && !byId("key").value;
    if (failure.kind === "key") {
      delete byId("gone").dataset.i18n; // the server's own words
      byId("gone").textContent = failure.message;
      return;
    }
    this.#history.interrupt();
    const seconds = Math.round((Date.now() - this.#answeredAt) / 1000);
    say(byId("gone"), "gone", { seconds });
  }
}

function showReady(isReady) {
  say(byId("ready"), isReady ? "ready" : "notReady").className = isReady ? "good" : "bad";
}

function showFigures({ requests, ttft, kv_cache_usage: cache }, rate) {
  const figures = {
    running: number(requests.running),
    waiting: number(requests.waiting),
    tokens: orDash(number, rate),
    firstTokenP50: orDash(duration, ttft.p50),
    firstTokenP95: orDash(duration, ttft.p95),
    cache: percent(cache),
  };
  byId("figures").replaceChildren(...Object.entries(figures).map(([name, shown]) => {
    const figure = element("div", name);
    figure.append(say(element("dt"), name), element("dd"));
    figure.lastChild.textContent = shown;
    return figure;
  }));
}

function showAlerts(alerts) {
  byId("alerts").hidden = alerts.length === 0;
  byId("alerts").replaceChildren(...alerts.map(({ name, level, since }) => {
    const item = element("li", level);
    const time = element("time");
    time.textContent = new Date(since * 1000).toLocaleTimeString(document.documentElement.lang);
    item.append(say(element("span"), `alert_${name}`), time);
    return item;
  }));
}

function showEngines(engines) {
  const columns = COLUMNS.toSpliced(
    COLUMNS.indexOf("tokens"), 0, ...engines.some((engine) => engine.state_slots) ? STATE_COLUMNS : [],
  );
  byId("engines").tHead.rows[0].replaceChildren(...columns.map((name) => say(element("th"), name)));
  byId("engines").tBodies[0].replaceChildren(...engines.map((engine) => {
    const row = element("tr");
    const slots = engine.state_slots;
    const shown = {
      ...engine,
      cache: percent(engine.kv_cache_usage),
      stateSlots: orDash(({ used, total }) => `${number(used)} / ${number(total)}`, slots),
      snapshots: orDash(({ snapshots }) => number(snapshots), slots),
      snapshotHits: orDash(({ snapshot_hits: hits }) => number(hits), slots),
      tokens: orDash(number, engine.rate),
    };
    row.append(...columns.map((name) => {
      const cell = element("td");
      cell.textContent = shown[name];
      return cell;
    }));
    const state = row.cells[columns.indexOf("state")];
    state.className = engine.state === "ready" ? "good" : "bad";
    if (STATES.has(engine.state)) say(state, `state_${engine.state}`);
    return row;
  }));
}

const STATES = new Set(["ready", "down", "loading", "draining"]);

let timer;
async function keepAsking() {
  clearTimeout(timer);
  if (await page.ask()) timer = setTimeout(keepAsking, INTERVAL);
}

translatePage();
const page = new StatusPage();
byId("language-btn").addEventListener("click", switchLanguage);
byId("theme-btn").addEventListener("click", switchTheme);
byId("key").addEventListener("change", keepAsking);
new MutationObserver(() => page.restyle()).observe(document.documentElement, {
  attributeFilter: ["lang", "data-theme"],
});
keepAsking();
