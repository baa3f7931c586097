// Elements with a class, the only ones the page makes by hand.

/** Return a new element. */
export function element(tag, className = "") {
  const made = document.createElement(tag);
  made.className = className;
  return made;
}
