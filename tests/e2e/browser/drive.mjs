// Drives one headless Chromium for pytest: a JSON line in, `{step, ...arguments}`, a JSON line out,
// `{result}` or `{error}`. Ends with its standard input.
//
//   node drive.mjs FOLDER_WITH_NODE_MODULES CHROMIUM

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { open, steps } from "./steps.mjs";

const [modules, executablePath] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)("playwright-core");
// Playwright makes a fresh profile folder for every launch and removes it.
const browser = await chromium.launch({
  executablePath,
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",  // which the servers beside it fill
  ],
});
let opened = null;

const reply = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

reply({ result: browser.version() });
for await (const line of createInterface({ input: process.stdin })) {
  const { step, ...values } = JSON.parse(line);
  try {
    if (step === "open") opened = await open(browser, values);
    else reply({ result: (await steps[step](opened, values)) ?? null });
    if (step === "open") reply({ result: null });
  } catch (error) {
    reply({ error: `${step}: ${error.message}` });
  }
}
await browser.close();
