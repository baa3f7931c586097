// The server's interface as the page uses it: the models, and a chat as a stream of pieces. Keeps
// nothing between calls; knows nothing of the page.

import { Failure } from "./failure.js";
import { readEvents } from "./sse.js";

// Beside `/ui/`, also where a proxy has put both under a prefix.
const API = new URL("../v1/", import.meta.url);

/** Return the names of the served models, the best first. */
export async function listModels(key) {
  const response = await fetch(new URL("models", API), { headers: headers(key) });
  if (!response.ok) throw await Failure.ofResponse(response);
  return (await response.json()).data.map((model) => model.id);
}

/** Return whether a model takes pictures, `true` where the server does not say. */
export async function takesPictures(model, key) {
  const response = await fetch(new URL(`models/${encodeURIComponent(model)}`, API), { headers: headers(key) });
  const modalities = response.ok ? (await response.json()).input_modalities : undefined;
  return modalities?.includes("image") ?? true;
}

/** Yield `{delta, finishReason}` as the answer comes. Throws a Failure; `signal` ends it. */
export async function* streamChat({ model, messages, key, signal }) {
  const response = await fetch(new URL("chat/completions", API), {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...(model && { model }), messages, stream: true }),
    signal,
  });
  const type = response.headers.get("Content-Type") ?? "";
  if (!response.ok || !type.startsWith("text/event-stream")) {
    throw await Failure.ofResponse(response);
  }
  for await (const { data } of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const frame = JSON.parse(data);
    if (frame.error) throw Failure.ofFrame(frame.error);
    const choice = frame.choices?.[0];
    if (choice) yield { delta: choice.delta ?? {}, finishReason: choice.finish_reason ?? null };
  }
  throw new Failure("lost");
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}
