// The page: ties composer, conversation, server and view together, and runs one answer at a time.

import { listModels, streamChat, takesPictures } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { Failure } from "./failure.js";
import { switchLanguage, translatePage } from "./i18n.js";
import { throttle } from "./render.js";
import { switchTheme } from "./theme.js";
import { ChatView } from "./view.js";

const RENDER_INTERVAL = 50; // ms
const MODELS_RETRY = 2000; // ms, while the model loads

const byId = (id) => document.getElementById(id);

/** The chat from one "new chat" to the next, and the answer that is being written. */
class Page {
  #view = new ChatView(byId("chat"), byId("welcome"));
  #conversation = new Conversation();
  #running = null; // the AbortController of the answer being written
  #composer = new Composer(
    {
      form: byId("composer"),
      input: byId("input"),
      sendButton: byId("send-btn"),
      stopButton: byId("abort-btn"),
      ofPictures: {
        button: byId("picture-btn"),
        file: byId("picture-file"),
        tray: byId("pictures"),
        notice: byId("picture-notice"),
      },
    },
    { onSend: (text, pictures) => this.#send(text, pictures), onStop: () => this.stop() },
  );

  /** Ask which models there are, until the server knows. */
  async loadModels() {
    try {
      const names = await listModels(byId("key").value);
      await this.askWhatIsTaken(names[0]);
      byId("model").replaceChildren(...names.map((name) => new Option(name, name)));
    } catch (error) {
      if (Failure.of(error).kind === "key") this.#askForKey();
      else setTimeout(() => this.loadModels(), MODELS_RETRY);
    }
  }

  /** Learn whether a model sees; what is not known is left to the server to refuse. */
  async askWhatIsTaken(model) {
    const areTaken = await takesPictures(model, byId("key").value).catch(() => true);
    this.#composer.pictures.areTaken = areTaken;
  }

  /** End the answer being written; what there is of it stays. */
  stop() {
    this.#running?.abort();
  }

  /** Forget the conversation. */
  restart() {
    this.stop();
    this.#conversation = new Conversation();
    this.#view.clear();
    this.suggest("");
  }

  /** Write a suggestion into the composer. */
  suggest(text) {
    this.#composer.fill(text);
  }

  #send(text, pictures) {
    this.#view.dropRetries();
    this.#view.addUser(text, pictures);
    this.#answer(this.#conversation.begin(text, pictures));
  }

  async #answer(turn) {
    const controller = new AbortController();
    this.#setRunning(controller);
    const message = this.#view.addBot();
    const show = throttle(() => message.update(turn.answer), RENDER_INTERVAL);
    let failure = null;
    try {
      await this.#receive(turn, controller.signal, show);
      turn.state = "done";
    } catch (error) {
      turn.state = controller.signal.aborted ? "stopped" : "failed";
      failure = turn.state === "failed" ? Failure.of(error) : null;
    }
    show.cancel();
    turn.answer.end();
    message.finish(turn.answer, noteOn(turn));
    if (failure) this.#offerRetry(turn, message, failure);
    if (this.#running === controller) this.#setRunning(null);
  }

  async #receive(turn, signal, show) {
    const pieces = streamChat({
      model: byId("model").value,
      messages: this.#conversation.messagesFor(turn),
      key: byId("key").value,
      signal,
    });
    for await (const { delta, finishReason } of pieces) {
      turn.answer.add(delta);
      turn.finishReason = finishReason ?? turn.finishReason;
      show();
    }
  }

  #offerRetry(turn, message, failure) {
    message.fail(failure, () => {
      if (this.#running) return;
      message.remove();
      turn.reset();
      this.#answer(turn);
    });
    if (failure.kind === "key") this.#askForKey();
  }

  #askForKey() {
    byId("key-row").hidden = false;
  }

  #setRunning(controller) {
    this.#running = controller;
    this.#composer.setBusy(controller !== null);
  }
}

function noteOn(turn) {
  if (turn.state === "stopped") return "stopped";
  if (turn.state !== "done") return null;
  if (turn.finishReason === "length") return "cut";
  if (turn.answer.isEmpty) return "empty";
  return turn.answer.calls.length ? "asksForTool" : null;
}

translatePage();
const page = new Page();
byId("new-btn").addEventListener("click", () => page.restart());
byId("language-btn").addEventListener("click", switchLanguage);
byId("theme-btn").addEventListener("click", switchTheme);
byId("key").addEventListener("change", () => page.loadModels());
byId("model").addEventListener("change", (event) => page.askWhatIsTaken(event.target.value));
for (const button of document.querySelectorAll(".suggestions button")) {
  button.addEventListener("click", () => page.suggest(button.textContent));
}
page.loadModels();
