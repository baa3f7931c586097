// Markdown that is still being written, as elements. Blocks that have not changed since the last
// piece keep their elements: a long answer costs its last paragraph, and selections survive.

import { Marked } from "./vendor/marked.esm.js";
import { copyButton } from "./copy.js";
import { element } from "./element.js";
import { colour } from "./highlight.js";
import { toFragment } from "./sanitize.js";

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    // A model that writes HTML shows it to the reader.
    html: ({ block, text }) => (block ? `<p>${escaped(text.trimEnd())}</p>` : escaped(text)),
    // Nothing is fetched that the reader has not asked for.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

/** Shows a growing Markdown text inside one element. */
export class Markdown {
  #root;
  #shown = []; // of each block: its source and whether it was final

  constructor(root) {
    this.#root = root;
  }

  /** Show the text as it is now; `isFinal` when no more will come. */
  update(text, isFinal = false) {
    const tokens = marked.lexer(text);
    // A link's address may follow its use by many blocks.
    const isStale = isFinal && Object.keys(tokens.links).length > 0;
    const blocks = tokens.filter((token) => token.type !== "space" && token.type !== "def");
    blocks.forEach((token, i) => {
      const isClosed = isFinal || i < blocks.length - 1;
      const before = this.#shown[i];
      if (isStale || before?.raw !== token.raw || before.isClosed !== isClosed) {
        this.#show(i, token, isClosed);
      }
    });
    while (this.#root.children.length > blocks.length) this.#root.lastChild.remove();
    this.#shown.length = blocks.length;
  }

  #show(i, token, isClosed) {
    const block = element("div", "block");
    block.append(toFragment(marked.parser([token])));
    for (const code of block.querySelectorAll("pre > code")) decorate(code, isClosed);
    for (const table of block.querySelectorAll("table")) {
      const frame = element("div", "table");
      table.replaceWith(frame);
      frame.append(table);
    }
    const before = this.#root.children[i];
    if (before) before.replaceWith(block);
    else this.#root.append(block);
    this.#shown[i] = { raw: token.raw, isClosed };
  }
}

/** Return a function that runs `work` at most every `interval` ms, and `cancel` to forget it. */
export function throttle(work, interval) {
  let timer = null;
  const run = () => {
    timer ??= setTimeout(() => {
      timer = null;
      work();
    }, interval);
  };
  run.cancel = () => {
    clearTimeout(timer);
    timer = null;
  };
  return run;
}

function decorate(code, isClosed) {
  const language = /(?:^|\s)language-(\S+)/.exec(code.className)?.[1] ?? "";
  const frame = element("div", "code");
  const bar = element("div", "bar");
  const name = element("span");
  name.textContent = language;
  bar.append(name, copyButton(() => code.textContent));
  code.parentElement.replaceWith(frame);
  frame.append(bar, code.parentElement);
  // While the block is open its colours would jump with every line.
  if (isClosed && language) colour(code, language).catch(() => {});
}

function escaped(text) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (character) => names[character]);
}
