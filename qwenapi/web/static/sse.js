// Server-sent events out of a byte stream, as the HTML standard reads them: any line end, comments
// skipped, `data:` lines joined, nothing given out before its empty line. Each call has a state of
// its own.

/** Yield `{event, data}` for each event of a ReadableStream of bytes; cancels it when left early. */
export async function* readEvents(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Lines in, events out. */
export class EventParser {
  #rest = "";
  #data = [];
  #event = "";

  /** Take the next piece of text and return the events that it completes. */
  push(piece) {
    const events = [];
    const lines = (this.#rest + piece).split(/\r\n|\n|\r(?!$)/);
    // A "\r" at the very end may be half of "\r\n": it stays for the next piece.
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line) this.#field(line);
      else events.push(...this.#dispatch());
    }
    return events;
  }

  #field(line) {
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (name === "data") this.#data.push(value);
    if (name === "event") this.#event = value;
  }

  #dispatch() {
    const found = this.#data.length ? [{ event: this.#event, data: this.#data.join("\n") }] : [];
    this.#data = [];
    this.#event = "";
    return found;
  }
}
