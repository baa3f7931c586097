// Where the reader writes and adds pictures: grows with its text, sends on Enter, and leaves Enter to
// an input method that is still composing.

import { Pictures } from "./pictures.js";

const IME_KEY_CODE = 229; // Safari ends the composition before it reports the key

/**
 * The text box, its buttons and its pictures. `onSend(text, pictures)` is called with what there is
 * to send, the pictures as data URLs.
 */
export class Composer {
  #input;
  #sendButton;
  #stopButton;
  #isBusy = false;
  pictures;

  constructor({ form, input, sendButton, stopButton, ofPictures }, { onSend, onStop }) {
    this.#input = input;
    this.#sendButton = sendButton;
    this.#stopButton = stopButton;
    this.pictures = new Pictures({ form, input, ...ofPictures }, () => this.#refresh());
    const send = () => {
      const text = input.value.trim();
      if (this.#isEmpty || this.#isBusy) return;
      this.fill("");
      onSend(text, this.pictures.take());
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    input.addEventListener("keydown", (event) => {
      const isComposing = event.isComposing || event.keyCode === IME_KEY_CODE;
      if (event.key !== "Enter" || event.shiftKey || isComposing) return;
      event.preventDefault();
      send();
    });
    input.addEventListener("input", () => this.#refresh());
    stopButton.addEventListener("click", onStop);
  }

  /** Replace what is written and put the cursor there. */
  fill(text) {
    this.#input.value = text;
    this.#refresh();
    this.#input.focus();
  }

  /** Offer to stop rather than to send, or the other way round. */
  setBusy(isBusy) {
    const hadFocus = document.activeElement === this.#stopButton;
    this.#isBusy = isBusy;
    this.#stopButton.hidden = !isBusy;
    this.#sendButton.hidden = isBusy;
    this.#refresh();
    if (hadFocus) this.#input.focus();
  }

  get #isEmpty() {
    return !this.#input.value.trim() && this.pictures.isEmpty;
  }

  #refresh() {
    this.#sendButton.disabled = this.#isBusy || this.#isEmpty;
    // An invisible copy of the text gives the box its height (style.css): nothing is measured, so
    // nothing on the page jumps while the reader writes.
    this.#input.parentElement.dataset.text = this.#input.value;
  }
}
