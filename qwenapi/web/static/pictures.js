// The pictures of the message being written: chosen, pasted or dropped, and shown until it is sent.
// Large ones are made smaller here, since a request's body is limited and a model sees no more.

import { element } from "./element.js";
import { say, text } from "./i18n.js";

const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const LARGE = 700_000; // characters of a data URL
const LONGEST_SIDE = 2048; // pixels
const QUALITY = 0.85;

/** What there is to send beside the text. `onChange()` is called whenever that changes. */
export class Pictures {
  #tray;
  #notice;
  #onChange;
  #urls = [];
  #areTaken = true;

  constructor({ form, input, button, file, tray, notice }, onChange) {
    this.#tray = tray;
    this.#notice = notice;
    this.#onChange = onChange;
    button.addEventListener("click", () => file.click());
    file.addEventListener("change", async () => {
      await this.add(file.files);
      file.value = "";
    });
    input.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length === 0) return;
      event.preventDefault();
      this.add(event.clipboardData.files);
    });
    for (const kind of ["dragover", "drop"]) {
      form.ownerDocument.addEventListener(kind, (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        if (kind === "drop") this.add(event.dataTransfer.files);
      });
    }
  }

  /** Say whether the chosen model sees; `true` where that is not known. */
  set areTaken(areTaken) {
    this.#areTaken = areTaken;
    this.#tell(areTaken || this.#urls.length === 0 ? null : "picturesRefused");
  }

  get isEmpty() {
    return this.#urls.length === 0;
  }

  /** Add files; say of what is none, or not for this model. */
  async add(files) {
    if (!this.#areTaken) {
      this.#tell("picturesRefused");
      return;
    }
    this.#tell(null);
    for (const file of [...files]) {
      try {
        if (!TYPES.includes(file.type)) throw new TypeError(file.type);
        this.#urls.push(await dataUrl(file));
      } catch {
        this.#tell("notAPicture");
      }
    }
    this.#show();
  }

  /** Return the pictures, and forget them. */
  take() {
    const urls = this.#urls;
    this.#urls = [];
    this.#tell(null);
    this.#show();
    return urls;
  }

  #tell(key) {
    this.#notice.hidden = key === null;
    if (key) say(this.#notice, key);
  }

  #show() {
    this.#tray.hidden = this.#urls.length === 0;
    this.#tray.replaceChildren(...this.#urls.map((url, i) => this.#thumbnail(url, i)));
    this.#onChange();
  }

  #thumbnail(url, i) {
    const item = element("div", "thumbnail");
    const remove = element("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.dataset.i18nLabel = "removePicture";
    remove.title = text("removePicture");
    remove.setAttribute("aria-label", remove.title);
    remove.addEventListener("click", () => {
      this.#urls.splice(i, 1);
      this.#show();
    });
    item.append(pictureElement(url), remove);
    return item;
  }
}

/** Return an element that shows a picture. */
export function pictureElement(url) {
  const image = element("img");
  image.src = url;
  image.alt = text("picture");
  return image;
}

async function dataUrl(file) {
  const whole = await readFile(file);
  const bitmap = await createImageBitmap(file); // throws of what no browser can show
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (whole.length <= LARGE && scale === 1) return whole;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // beneath what is transparent, of which JPEG has nothing
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", QUALITY);
}

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
