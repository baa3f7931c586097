// Qwen Code's command line: `qwen -p` reads a file by its own tool, and ends with what is in it.
//
// Its prompts are too long for a small model. The engine is a stub that repeats the prompt's tokens
// from the one numbered `seed`, and so makes the call that ends the question, then says the end of
// the file. SEED and STOP_TOKEN are that place and what ends a turn.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { MODEL, proves, tell } from "./proof.mjs";

const NOTE = "It is sunny in Paris, 21 degrees. ";
const { CALL, HOME, NOTE_FILE, OPENAI_BASE_URL, SEED, STOP_TOKEN } = process.env;

const samplingParams = { seed: Number(SEED), max_tokens: 200, stop_token_ids: [Number(STOP_TOKEN)] };
const settings = {
  telemetry: { enabled: false },
  privacy: { usageStatisticsEnabled: false },
  general: { enableAutoUpdate: false },
  memory: { enableManagedAutoMemory: false, enableManagedAutoDream: false },
  model: { generationConfig: { samplingParams } },
};

proves("stream_tools", "qwen -p", () => {
  mkdirSync(`${HOME}/.qwen`, { recursive: true });
  writeFileSync(`${HOME}/.qwen/settings.json`, JSON.stringify(settings));
  writeFileSync(NOTE_FILE, NOTE.repeat(20));
  const qwen = new URL("node_modules/@qwen-code/qwen-code/cli-entry.js", import.meta.url).pathname;
  const flags = ["--auth-type", "openai", "--output-format", "json", "-p", CALL];
  const environ = { ...process.env, OPENAI_BASE_URL, OPENAI_MODEL: MODEL };
  const options = { cwd: HOME, env: environ, encoding: "utf8", timeout: 120_000 };
  const done = spawnSync(process.execPath, [qwen, ...flags], options);
  assert.equal(done.status, 0, done.stderr);
  const said = JSON.parse(done.stdout);
  const blocks = said.flatMap(({ message }) => message?.content ?? []);
  assert.ok(blocks.some(({ type, name }) => type === "tool_use" && name === "read_file"));
  assert.ok(blocks.some(({ type, is_error }) => type === "tool_result" && !is_error));
  const { is_error, result, usage } = said.at(-1);
  assert.ok(!is_error && result.includes(NOTE) && usage.output_tokens, done.stdout);
});

await tell("@qwen-code/qwen-code");
