// The messages on the page. A reader's words only ever become text; a model's go through render.js.

import { CallCard } from "./call_card.js";
import { copyButton } from "./copy.js";
import { element } from "./element.js";
import { say } from "./i18n.js";
import { pictureElement } from "./pictures.js";
import { Markdown } from "./render.js";

const NEAR_END = 40; // pixels

/** The column of messages; scrolls along only for a reader who is at its end. */
export class ChatView {
  #chat;
  #welcome;
  #height = 0;
  #wasAtEnd = true;

  constructor(chat, welcome) {
    this.#chat = chat;
    this.#welcome = welcome;
    // The composer and a phone's keyboard take room from the chat: that is not the reader's
    // scrolling, though it comes as the same event.
    chat.addEventListener("scroll", () => {
      if (chat.clientHeight === this.#height) this.#wasAtEnd = this.#isAtEnd;
    });
    new ResizeObserver(() => {
      this.#height = chat.clientHeight;
      if (this.#wasAtEnd) this.scrollToEnd();
    }).observe(chat);
  }

  /** Show what the reader says. */
  addUser(text, pictures = []) {
    this.#welcome.hidden = true;
    const { content } = this.#addMessage("user", "youSaid");
    content.textContent = text;
    if (pictures.length) {
      const shown = element("div", "pictures");
      shown.append(...pictures.map(pictureElement));
      content.before(shown);
      content.hidden = !text;
    }
    this.scrollToEnd();
  }

  /** Return a new, empty answer. */
  addBot() {
    const { message, content } = this.#addMessage("bot", "itSaid");
    const answer = new BotMessage(message, content, (change) => this.#follow(change));
    this.scrollToEnd();
    return answer;
  }

  /** Take all messages away. */
  clear() {
    for (const message of this.#chat.querySelectorAll(".message")) message.remove();
    this.#welcome.hidden = false;
  }

  /** Take away the offers to retry: the conversation goes on. */
  dropRetries() {
    for (const button of this.#chat.querySelectorAll(".retry")) button.remove();
  }

  scrollToEnd() {
    this.#chat.scrollTop = this.#chat.scrollHeight;
  }

  get #isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.#chat;
    return scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  #follow(change) {
    const isAtEnd = this.#isAtEnd;
    change();
    if (isAtEnd) this.scrollToEnd();
  }

  #addMessage(kind, speaker) {
    const message = element("article", `message ${kind}`);
    const content = element("div", "content");
    message.append(say(element("span", "hidden-label"), speaker), content);
    this.#chat.append(message);
    return { message, content };
  }
}

/** One answer: while it comes, and how it ended. */
class BotMessage {
  #message;
  #follow;
  #markdown;
  #thought = null;
  #cards = [];
  #indicator = element("div", "typing-indicator");

  constructor(message, content, follow) {
    this.#message = message;
    this.#follow = follow;
    this.#markdown = new Markdown(content);
    // A screen reader hears the answer once, when it is complete.
    message.setAttribute("aria-busy", "true");
    message.classList.add("streaming");
    this.#indicator.append(element("i"), element("i"), element("i"));
    message.append(this.#indicator);
  }

  /** Show the answer as far as it has come. */
  update(answer) {
    this.#follow(() => this.#show(answer, false));
  }

  /** Show the answer's end, and a note where it is not the plain one. */
  finish(answer, note) {
    this.#follow(() => {
      this.#show(answer, true);
      this.#indicator.remove();
      this.#message.classList.remove("streaming");
      this.#message.removeAttribute("aria-busy");
      if (note) this.#message.append(say(element("p", "note"), note));
      if (answer.words) this.#message.append(this.#copyButton(answer));
    });
  }

  /** Say why there is no more, and offer to try again. */
  fail(failure, retry) {
    this.#follow(() => {
      const box = element("div", "error");
      box.append(say(element("p"), `error_${failure.kind}`, { seconds: failure.seconds }));
      if (failure.detail) {
        const detail = element("p", "detail");
        detail.textContent = failure.detail;
        box.append(detail);
      }
      const button = say(element("button", "retry"), "retry");
      button.type = "button";
      button.addEventListener("click", retry);
      box.append(button);
      this.#message.append(box);
    });
  }

  remove() {
    this.#message.remove();
  }

  #show({ parts: { thought, words }, calls }, isFinal) {
    if (thought) this.#showThought(thought, !isFinal && !words && calls.length === 0);
    this.#markdown.update(words, isFinal);
    calls.forEach((call, i) => this.#showCall(i, call, isFinal || i < calls.length - 1));
  }

  #showThought(thought, isOpen) {
    if (!this.#thought) {
      this.#thought = element("details", "thought");
      this.#thought.append(element("summary"), element("div"));
      this.#message.querySelector(".content").before(this.#thought);
    }
    const [summary, body] = this.#thought.children;
    say(summary, isOpen ? "thinking" : "thought");
    body.textContent = thought;
  }

  #showCall(i, call, isClosed) {
    if (!this.#cards[i]) {
      this.#cards[i] = new CallCard();
      this.#indicator.before(this.#cards[i].element);
    }
    this.#cards[i].update(call, isClosed);
  }

  #copyButton(answer) {
    const button = copyButton(() => answer.words, "copyAnswer");
    button.classList.add("whole");
    return button;
  }
}
