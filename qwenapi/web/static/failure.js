// Why there is no answer, or no more of it: one kind the page has words for, and the server's own.

const KIND_OF_STATUS = { 401: "key", 403: "key" };

/** A failed request. `kind` is one of busy, context, key, lost, refused, server, unavailable. */
export class Failure extends Error {
  constructor(kind, message = "", seconds = 1) {
    super(message);
    this.kind = kind;
    this.seconds = seconds;
  }

  /** The server's own words, where the kind alone does not say enough. */
  get detail() {
    return ["refused", "server", "unavailable"].includes(this.kind) ? this.message : "";
  }

  /** Return what was thrown as a Failure: what is none is a connection that broke. */
  static of(thrown) {
    return thrown instanceof Failure ? thrown : new Failure("lost", thrown?.message);
  }

  /** Return the failure that an answer other than a stream tells of, whatever its dialect. */
  static async ofResponse(response) {
    const { code, message, isQueue } = describe(await response.text().catch(() => ""));
    const isBusy = code === "queue_full" || isQueue || response.status === 429;
    const byStatus = response.status === 503 ? "unavailable" : response.status >= 500 ? "server" : "refused";
    const kind = isBusy ? "busy" : code === "context_length_exceeded" ? "context"
      : KIND_OF_STATUS[response.status] ?? byStatus;
    const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
    return new Failure(kind, message || `HTTP ${response.status}`, seconds > 0 ? seconds : 1);
  }

  /** Return the failure that an error frame inside a stream tells of. */
  static ofFrame(error) {
    return new Failure("server", typeof error === "string" ? error : String(error.message ?? ""));
  }
}

/** Return code and words of an error body: OpenAI's object, a flat string, FastAPI's detail. */
function describe(text) {
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    return { message: "" }; // a proxy's HTML page says less than its status
  }
  const error = body?.error ?? body?.detail ?? body;
  const message = typeof error === "string" ? error : error?.message ?? error?.[0]?.msg ?? "";
  return { code: error?.code, message, isQueue: body?.max_queue_size !== undefined };
}
