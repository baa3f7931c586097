// What the plots show: points of the last fifteen minutes, from the server's readings. Times are
// the server's, in seconds. Knows nothing of the page.

export const HISTORY = 900; // s
const NAMES = ["running", "waiting", "rate", "p50", "p95", "cache"];

/** Points in time, each with a number or null for every name; null is a hole in a line. */
export class History {
  #points = [];
  #before = null;

  /** Return how many tokens/s there were since the reading before, null where nobody can know. */
  add(reading) {
    if (!this.#before) {
      for (const { at, tokens_per_second: rate, ttft } of reading.history ?? []) {
        this.#push({ at, rate, ...ttft });
      }
    }
    const rate = ratePerSecond(this.#before, reading, (from) => from.tokens);
    const { requests: { running, waiting }, ttft, kv_cache_usage: cache } = reading;
    this.#push({ at: reading.at, running, waiting, rate, ...ttft, cache });
    this.#before = reading;
    return rate;
  }

  /** Leave a hole: what happens until the next reading is not known. */
  interrupt() {
    if (this.#before) this.#push({ at: this.#before.at + 0.001 });
  }

  /** Return tokens/s of one engine between a reading and the one that is added next. */
  rateOf(engine, reading) {
    return ratePerSecond(this.#before, reading, ({ engines }) =>
      engines.find((one) => one.engine === engine)?.tokens);
  }

  /** Return the times and the values of these names, as uPlot takes them. */
  columns(names) {
    return ["at", ...names].map((name) => this.#points.map((point) => point[name]));
  }

  #push(point) {
    const last = this.#points.at(-1);
    if (last && point.at <= last.at) return; // another process's clock, or the same hole again
    this.#points.push({ ...Object.fromEntries(NAMES.map((name) => [name, null])), ...point });
    while (this.#points[0].at < point.at - HISTORY) this.#points.shift();
  }
}

/** Return a counter's growth between two readings; null for one that began anew. */
function ratePerSecond(before, after, counter) {
  if (!before || after.at <= before.at) return null;
  const grown = counter(after) - counter(before);
  return grown >= 0 ? grown / (after.at - before.at) : null;
}
