// A tool call on the page: the function's name and its arguments, laid out as they come. All of it
// only ever becomes text.

import { copyButton } from "./copy.js";
import { element } from "./element.js";
import { colour } from "./highlight.js";
import { say } from "./i18n.js";
import { layOut } from "./json_layout.js";

/** One call, in the `element` that shows it. */
export class CallCard {
  element = element("section", "code call");
  #name = element("strong");
  #code = element("code", "language-json");
  #shown = ""; // the arguments, and whether they were complete

  constructor() {
    const bar = element("div", "bar");
    const title = element("span", "title");
    const frame = element("pre");
    title.append(say(element("span"), "call"), this.#name);
    bar.append(title, copyButton(() => this.#code.textContent));
    frame.append(this.#code);
    this.element.append(bar, frame);
  }

  /** Show the call as far as it has come. */
  update({ name, text }, isClosed) {
    const shown = `${isClosed} ${text}`;
    this.#name.textContent = name;
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#code.textContent = layOut(text);
    if (isClosed) colour(this.#code, "json").catch(() => {});
  }
}
