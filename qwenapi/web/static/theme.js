// Light or dark: the system's choice until the reader makes one. Owns `data-theme` of the page.

import { recall, remember } from "./memory.js";

const system = matchMedia("(prefers-color-scheme: dark)");

/** Show the theme that was chosen, else the system's. */
function apply() {
  const chosen = recall("theme");
  document.documentElement.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
}

/** Change to the other theme and remember it. */
export function switchTheme() {
  remember("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  apply();
}

system.addEventListener("change", apply);
apply();
