// Where the reader writes: grows with its text, sends on Enter, and leaves Enter to an input method
// that is still composing.

const IME_KEY_CODE = 229; // Safari ends the composition before it reports the key

/** The text box and its two buttons. `onSend(text)` is called with what there is to send. */
export class Composer {
  #input;
  #sendButton;
  #stopButton;
  #isBusy = false;

  constructor({ form, input, sendButton, stopButton }, { onSend, onStop }) {
    this.#input = input;
    this.#sendButton = sendButton;
    this.#stopButton = stopButton;
    const send = () => {
      const text = input.value.trim();
      if (!text || this.#isBusy) return;
      this.fill("");
      onSend(text);
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

  #refresh() {
    this.#sendButton.disabled = this.#isBusy || !this.#input.value.trim();
    // An invisible copy of the text gives the box its height (style.css): nothing is measured, so
    // nothing on the page jumps while the reader writes.
    this.#input.parentElement.dataset.text = this.#input.value;
  }
}
