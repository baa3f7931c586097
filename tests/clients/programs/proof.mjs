// What a program shows its client to do, told to the test as one line of JSON: see proof.py.

import { readFileSync } from "node:fs";

export const MODEL = "qwen-demo";
export const QUESTION = "What is the weather in Paris?";
export const ANSWER = "It is sunny in Paris, 21 degrees.";
export const PERSON = "Return JSON with name and age: Alice is 30 years old";

const proofs = [];

export function proves(capability, by, show) {
  proofs.push({ capability, by, show });
}

export async function tell(distribution) {
  const told = [];
  for (const { capability, by, show } of proofs) {
    let error = "";
    try {
      await show();
    } catch (problem) {
      error = String(problem.stack);
    }
    told.push({ capability, by, error });
  }
  const file = new URL(`node_modules/${distribution}/package.json`, import.meta.url);
  const { version } = JSON.parse(readFileSync(file));
  console.log(JSON.stringify({ version, proofs: told }));
}
