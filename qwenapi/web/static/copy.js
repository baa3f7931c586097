// A button that copies a text. Works on plain http addresses too, where browsers withhold their
// clipboard interface.

import { say } from "./i18n.js";

/** Return a button named `label` that copies what `source` returns when it is pressed. */
export function copyButton(source, label = "copy") {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  say(button, label);
  button.addEventListener("click", async () => {
    if (await copy(source())) {
      say(button, "copied");
      setTimeout(() => say(button, label), 1500);
    }
    button.focus();
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.className = "hidden-label";
  area.value = text;
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  return isDone;
}
