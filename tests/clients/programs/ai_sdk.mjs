// Vercel's AI SDK by @ai-sdk/openai-compatible: text, tools, objects, whole and streamed.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { ANSWER, MODEL, PERSON, proves, QUESTION, tell } from "./proof.mjs";

const provider = createOpenAICompatible({
  name: "qwenapi",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider(MODEL);
const person = z.object({ name: z.string(), age: z.number().int() });
const tools = {
  get_weather: tool({
    description: "Get the weather of a city",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      assert.equal(city, "Paris");
      return { weather: "sunny", temperature: 21 };
    },
  }),
};
const asked = { model, tools, prompt: QUESTION, temperature: 0, stopWhen: stepCountIs(3) };

proves("chat", "generateText", async () => {
  const said = await generateText({ model, prompt: "你好", temperature: 0 });
  assert.ok(said.text && said.usage.outputTokens);
});

proves("stream", "streamText", async () => {
  const said = streamText({ model, prompt: "你好", temperature: 0 });
  let text = "";
  for await (const piece of said.textStream) text += piece;
  assert.ok(text);
  assert.ok((await said.usage).outputTokens);
});

proves("tools", "generateText", async () => {
  const said = await generateText(asked);
  assert.equal(said.text, ANSWER);
  assert.equal(said.steps.length, 2);
});

proves("stream_tools", "streamText", async () => {
  const said = streamText(asked);
  const kinds = new Set();
  for await (const part of said.fullStream) kinds.add(part.type);
  assert.ok(kinds.has("tool-call") && kinds.has("tool-result"));
  assert.equal(await said.text, ANSWER);
});

proves("schema", "generateObject", async () => {
  const said = await generateObject({ model, schema: person, prompt: PERSON, temperature: 0 });
  assert.deepEqual(said.object, { name: "Alice", age: 30 });
});

proves("schema", "Output.object", async () => {
  const output = Output.object({ schema: person });
  const said = await generateText({ model, output, prompt: PERSON, temperature: 0 });
  assert.deepEqual(said.output, { name: "Alice", age: 30 });
});

proves("reasoning", "reasoningText", async () => {
  const said = await generateText(asked);
  assert.match(said.steps[0].reasoningText, /get_weather/);
});

await tell("@ai-sdk/openai-compatible");
