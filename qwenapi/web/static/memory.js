// What the reader chose, kept for the next visit: theme and language, never a word of a chat.

/** Return what was remembered, or null; a browser that keeps nothing is no error. */
export function recall(name) {
  try {
    return localStorage.getItem(`qwenapi.${name}`);
  } catch {
    return null;
  }
}

/** Remember a choice, where the browser lets us. */
export function remember(name, value) {
  try {
    localStorage.setItem(`qwenapi.${name}`, value);
  } catch {
    // Private windows may refuse; the choice then lasts as long as the page.
  }
}
