// Colours for code. A language's grammar is loaded when an answer first uses it; what we have no
// grammar for stays plain.

import hljs from "./vendor/highlight.core.min.js";
import { toFragment } from "./sanitize.js";

const GRAMMARS = {
  bash: "bash sh shell zsh console",
  cpp: "cpp c++ c h hpp cc",
  diff: "diff patch",
  go: "go golang",
  java: "java",
  javascript: "javascript js jsx mjs node",
  json: "json jsonc",
  python: "python py python3",
  rust: "rust rs",
  sql: "sql mysql postgresql sqlite",
  typescript: "typescript ts tsx",
  xml: "xml html svg vue",
  yaml: "yaml yml",
};
const GRAMMAR_OF = new Map(
  Object.entries(GRAMMARS).flatMap(([grammar, names]) => names.split(" ").map((n) => [n, grammar])),
);
const MAX_CHARACTERS = 50_000; // beyond it colours would cost more than they show

/** Colour a `<code>` element of the named language. */
export async function colour(element, language) {
  const grammar = GRAMMAR_OF.get(language.toLowerCase());
  const source = element.textContent;
  if (!grammar || source.length > MAX_CHARACTERS) return;
  if (!hljs.getLanguage(grammar)) {
    const loaded = await import(`./vendor/languages/${grammar}.min.js`);
    hljs.registerLanguage(grammar, loaded.default);
  }
  element.replaceChildren(toFragment(hljs.highlight(source, { language: grammar }).value));
}
