// A conversation in the page's memory: turns, and what of them the next request carries. Knows
// neither server nor page.

/** One question and what became of it. `state`: running, done, stopped or failed. */
export class Turn {
  question;
  answer = "";
  state = "running";
  finishReason = null;

  constructor(question) {
    this.question = question;
  }

  /** Forget what a failed attempt gave, before the next. */
  reset() {
    this.answer = "";
    this.state = "running";
    this.finishReason = null;
  }

  /** The answer without its reasoning. */
  get words() {
    return splitThought(this.answer).answer;
  }

  /** Return whether later turns know of this one: a question without answer would mislead them. */
  get isRemembered() {
    return (this.state === "done" || this.state === "stopped") && this.words !== "";
  }
}

/** The turns since "new chat". */
export class Conversation {
  #turns = [];

  /** Add a turn for the question and return it. */
  begin(question) {
    const turn = new Turn(question);
    this.#turns.push(turn);
    return turn;
  }

  /** Return the messages that ask `turn`: the turns remembered before it, then its question. */
  messagesFor(turn) {
    const before = this.#turns.slice(0, this.#turns.indexOf(turn));
    const messages = before.filter((earlier) => earlier.isRemembered).flatMap((earlier) => [
      { role: "user", content: earlier.question },
      { role: "assistant", content: earlier.words },
    ]);
    return [...messages, { role: "user", content: turn.question }];
  }
}

/** Return `{thought, answer, isOpen}`: a reasoning model's `<think>` part, and the rest. */
export function splitThought(text) {
  const [, thought, end, answer] = /^\s*<think>(.*?)(<\/think>|$)(.*)$/s.exec(text) ?? [];
  if (thought === undefined) return { thought: "", answer: text, isOpen: false };
  return { thought: thought.trim(), answer: answer.trimStart(), isOpen: !end };
}
