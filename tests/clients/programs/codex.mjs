// Codex's command line: `codex exec` reads a file by its own tool, and ends with what is in it.
//
// Its prompts are too long for a small model. The engine says what was said to it last: the
// question, which is the call, and then what came of that. CONFIG is the configuration of the pages.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { ANSWER, MODEL, proves, tell } from "./proof.mjs";

const { CONFIG, HOME } = process.env;
const ASKED = { name: "exec_command", arguments: { cmd: "cat note.txt" } };
const CALL = `<tool_call>\n${JSON.stringify(ASKED)}\n</tool_call>`;

proves("stream_tools", "codex exec", () => {
  mkdirSync(`${HOME}/.codex`, { recursive: true });
  writeFileSync(`${HOME}/.codex/config.toml`, CONFIG);
  writeFileSync(`${HOME}/note.txt`, ANSWER);
  const codex = new URL("node_modules/@openai/codex/bin/codex.js", import.meta.url).pathname;
  // Its sandbox is not to be had inside every container; the command is our own.
  const may = ["--skip-git-repo-check", "--sandbox", "danger-full-access"];
  const options = { cwd: HOME, encoding: "utf8", input: "", timeout: 120_000 };
  const flags = ["exec", "--json", "--strict-config", ...may, CALL];
  const done = spawnSync(process.execPath, [codex, ...flags], options);
  assert.equal(done.status, 0, done.stdout + done.stderr);
  const events = done.stdout.trim().split("\n").map((line) => JSON.parse(line));
  const items = events.filter(({ type }) => type === "item.completed").map(({ item }) => item);
  const run = items.find(({ type }) => type === "command_execution");
  assert.ok(run.aggregated_output === ANSWER && run.exit_code === 0, done.stdout);
  const said = items.filter(({ type }) => type === "agent_message").at(-1);
  assert.ok(said.text.includes(ANSWER), done.stdout);
  const ended = events.at(-1);
  assert.ok(ended.type === "turn.completed" && ended.usage.output_tokens, done.stdout);
});

await tell("@openai/codex");
