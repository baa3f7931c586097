// What has come of one answer: its words, its thought and its tool calls, whichever way the server
// tells them apart. Knows neither server nor page.

const START = "<think>";
const END = "</think>";
// Where the prompt has opened the thought, only its end is written, on a line of its own.
const END_LINE = /(?:^|\n)<\/think>(?:\n|$)/;

/** An answer that grows by the deltas of a chat completion. */
export class Answer {
  #content = "";
  #reasoning = "";
  #calls = new Map(); // by their index: `{name, text}`, the arguments as far as they have come
  #isDone = false;

  /** Take the next delta. */
  add(delta) {
    this.#content += delta.content ?? "";
    // A server that writes both says the same in each.
    this.#reasoning += delta.reasoning_content || delta.reasoning || "";
    for (const { index = 0, function: said } of delta.tool_calls ?? []) this.#addCall(index, said);
  }

  /** Say that no more comes: what looked like the beginning of markup was none. */
  end() {
    this.#isDone = true;
  }

  /** Return `{thought, words}`: what the model said to itself, and what it says to the reader. */
  get parts() {
    // Where the server tells thoughts by name, a `<think>` in the content is a word like others.
    return this.#reasoning
      ? { thought: this.#reasoning.trim(), words: this.#content.trimStart() }
      : splitThought(this.#content, this.#isDone);
  }

  get words() {
    return this.parts.words;
  }

  get calls() {
    return [...this.#calls.values()];
  }

  /** Return whether there is nothing for the reader, whatever was thought. */
  get isEmpty() {
    return this.words === "" && this.#calls.size === 0;
  }

  #addCall(index, said) {
    const { name, text } = this.#calls.get(index) ?? { name: "", text: "" };
    this.#calls.set(index, {
      name: name + (said?.name ?? ""),
      text: text + (said?.arguments ?? ""),
    });
  }
}

/** Return `{thought, words}` of a content with markup; the beginning of a marker may yet go on. */
function splitThought(content, isDone) {
  const text = isDone ? content : withoutBeginningOf(END, content);
  const trimmed = text.trimStart();
  if (!isDone && START.startsWith(trimmed)) return { thought: "", words: "" };
  if (trimmed.startsWith(START)) return cut(trimmed.slice(START.length), END);
  const [line] = END_LINE.exec(text) ?? [];
  const isHeadless = line && !text.split(line, 1)[0].includes(START);
  return isHeadless ? cut(text, line) : { thought: "", words: text };
}

function cut(text, marker) {
  const [thought, ...rest] = text.split(marker);
  return { thought: thought.trim(), words: rest.join(marker).trimStart() };
}

function withoutBeginningOf(marker, text) {
  for (let size = Math.min(marker.length - 1, text.length); size > 0; size -= 1) {
    if (text.endsWith(marker.slice(0, size))) return text.slice(0, -size);
  }
  return text;
}
