// A conversation in the page's memory: turns, and what of them the next request carries. Knows
// neither server nor page.

import { Answer } from "./answer.js";

/** One question and what became of it. `state`: running, done, stopped or failed. */
export class Turn {
  question;
  pictures; // as data URLs
  answer = new Answer();
  state = "running";
  finishReason = null;

  constructor(question, pictures) {
    this.question = question;
    this.pictures = pictures;
  }

  /** What the reader says, as the server takes it. */
  get content() {
    if (this.pictures.length === 0) return this.question;
    const shown = this.pictures.map((url) => ({ type: "image_url", image_url: { url } }));
    return this.question ? [...shown, { type: "text", text: this.question }] : shown;
  }

  /** Forget what a failed attempt gave, before the next. */
  reset() {
    this.answer = new Answer();
    this.state = "running";
    this.finishReason = null;
  }

  /** Return whether later turns know of this one: a question without answer would mislead them. */
  get isRemembered() {
    return (this.state === "done" || this.state === "stopped") && this.answer.words !== "";
  }
}

/** The turns since "new chat". */
export class Conversation {
  #turns = [];

  /** Add a turn for the question and return it. */
  begin(question, pictures = []) {
    const turn = new Turn(question, pictures);
    this.#turns.push(turn);
    return turn;
  }

  /**
   * Return the messages that ask `turn`: the turns remembered before it, by their words alone, as
   * no tool answered a call and templates drop old thoughts; then its question.
   */
  messagesFor(turn) {
    const before = this.#turns.slice(0, this.#turns.indexOf(turn));
    const messages = before.filter((earlier) => earlier.isRemembered).flatMap((earlier) => [
      { role: "user", content: earlier.content },
      { role: "assistant", content: earlier.answer.words },
    ]);
    return [...messages, { role: "user", content: turn.content }];
  }
}
