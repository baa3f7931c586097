// The reference page: shown in the theme of the chat page, and changed by the same button.

import { switchTheme } from "./theme.js";

addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme-btn").addEventListener("click", switchTheme);
});
