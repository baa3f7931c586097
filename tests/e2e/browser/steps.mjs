// What a test may do in a browser and ask of it: one small function a step.

/** Open a page of its own context; returns the page and the list of what went wrong in it. */
export async function open(browser, {
  url, locale = "en-US", width = 1280, height = 800, theme = "light",
  ready = '#model option:not([value=""])',
}) {
  const context = await browser.newContext({
    locale, colorScheme: theme, viewport: { width, height },
  });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("crash", () => complaints.push("the page crashed"));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("requestfailed", (request) => {
    const why = request.failure()?.errorText;
    if (why !== "net::ERR_ABORTED") complaints.push(`${request.url()}: ${why}`);
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(new URL(url).origin) && !request.url().startsWith("data:")) {
      complaints.push(`asks another server: ${request.url()}`);
    }
  });
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  const bodies = [];
  page.on("request", (request) => {
    if (request.method() === "POST") bodies.push(request.postDataJSON());
  });
  page.setDefaultTimeout(60_000);
  await page.goto(url);
  await page.locator(ready).waitFor({ state: "attached" }).catch((error) => {
    throw new Error([error.message, ...complaints].join("\n"));
  });
  return { page, complaints, bodies };
}

const answer = (page) => page.locator(".message.bot").last();

export const steps = {
  /** Write and press Enter. */
  async send({ page }, { text }) {
    await page.fill("#input", text);
    await page.press("#input", "Enter");
  },
  async fill({ page }, { selector, text }) {
    await page.fill(selector, text);
  },
  async press({ page }, { key }) {
    await page.press("#input", key);
  },
  async click({ page }, { selector }) {
    await page.locator(selector).last().click();
  },
  async value({ page }, { selector }) {
    return page.inputValue(selector);
  },
  async count({ page }, { selector }) {
    return page.locator(selector).count();
  },
  async attribute({ page }, { selector, name }) {
    return page.locator(selector).first().getAttribute(name);
  },
  /** The words of the last element that matches, as they are shown. */
  async text({ page }, { selector }) {
    return page.locator(selector).last().innerText();
  },
  async lastAnswer({ page }) {
    return answer(page).locator(".content").innerText();
  },
  /** Wait until the last answer holds a text. */
  async waitForText({ page }, { text }) {
    await answer(page).filter({ hasText: text }).waitFor();
  },
  async waitFor({ page }, { selector }) {
    await page.locator(selector).first().waitFor({ state: "attached" });
  },
  async waitUntilIdle({ page }) {
    await page.waitForFunction(() => !document.querySelector(".streaming"));
  },
  /** Every length that the last answer has while it grows. */
  async watch({ page }) {
    return page.evaluate(() => new Promise((resolve) => {
      const message = [...document.querySelectorAll(".message.bot")].at(-1);
      const lengths = [];
      const look = () => {
        const length = message.querySelector(".content").innerText.length;
        if (length !== lengths.at(-1)) lengths.push(length);
        if (!message.matches(".streaming")) {
          observer.disconnect();
          resolve(lengths);
        }
      };
      const observer = new MutationObserver(look);
      observer.observe(message, { subtree: true, childList: true, attributes: true });
      look();
    }));
  },
  /** Every text that a selector's elements show while the last answer grows; `start` is called. */
  async watchTexts({ page }, { selector, start }) {
    return page.evaluate(([wanted, name]) => new Promise((resolve) => {
      const message = [...document.querySelectorAll(".message.bot")].at(-1);
      const texts = new Set();
      const look = () => {
        for (const element of message.querySelectorAll(wanted)) texts.add(element.textContent);
        if (message.matches(".streaming")) return;
        observer.disconnect();
        resolve([...texts]);
      };
      const observer = new MutationObserver(look);
      observer.observe(message, { subtree: true, childList: true, attributes: true });
      look();
      globalThis[name]();
    }), [selector, start]);
  },
  /** Enter as an input method sends it: composing, or reported after Safari's early end. */
  async enterOfInputMethod({ page }) {
    await page.evaluate(() => {
      const input = document.getElementById("input");
      const enter = { key: "Enter", bubbles: true, cancelable: true };
      input.dispatchEvent(new KeyboardEvent("keydown", { ...enter, isComposing: true }));
      input.dispatchEvent(new KeyboardEvent("keydown", { ...enter, keyCode: 229 }));
    });
  },
  /** Give the next chats this answer instead of the server's. */
  async answerWith({ page }, { status = 200, type = "text/event-stream", headers = {}, body }) {
    await page.route("**/v1/chat/completions", (route) =>
      route.fulfill({ status, headers: { "content-type": type, ...headers }, body }));
  },
  /** Give the next chats this stream, `cut` bytes at a time; `held` follows once it is let go. */
  async answerInPieces({ page }, { body, held = "", cut, pause = 0 }) {
    await page.evaluate(([parts, size, milliseconds]) => {
      async function* pieces() {
        for (const [i, part] of parts.entries()) {
          if (i > 0 && part) await new Promise((done) => { globalThis.letGo = done; });
          const bytes = new TextEncoder().encode(part);
          for (let at = 0; at < bytes.length; at += size) {
            await new Promise((done) => setTimeout(done, milliseconds));
            yield bytes.slice(at, at + size);
          }
        }
      }
      const answer = (iterator) => new ReadableStream({
        async pull(controller) {
          const { done, value } = await iterator.next();
          if (done) controller.close();
          else controller.enqueue(value);
        },
      });
      const headers = { "content-type": "text/event-stream" };
      const real = globalThis.fetch;
      globalThis.fetch = async (url, options) => (String(url).endsWith("/chat/completions")
        ? new Response(answer(pieces()), { headers })
        : real(url, options));
    }, [[body, held], cut, pause]);
  },
  /** Wait until a stream has come as far as it is let. */
  async waitForHeld({ page }) {
    await page.waitForFunction(() => globalThis.letGo);
  },
  async answerForReal({ page }) {
    await page.unroute("**/v1/chat/completions");
  },
  async requests({ bodies }) {
    return bodies;
  },
  async evaluate({ page }, { script }) {
    return page.evaluate(script);
  },
  async complaints({ complaints }) {
    return complaints;
  },
  /** A picture of what is in view, or of one element. */
  async screenshot({ page }, { path, selector }) {
    await (selector ? page.locator(selector) : page).screenshot({ path });
  },
  async close({ page }) {
    await page.context().close();
  },
};
