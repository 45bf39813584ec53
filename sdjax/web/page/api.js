// What the page asks of the server: the web UI's API, nothing else. Addresses are relative: a proxy may put a folder
// before them.

/** A refusal. `fields`: [{path: ["body", ...] without "body", message}], those that the server named. */
export class Refusal extends Error {
  constructor(message, fields = [], status = 0) {
    super(message);
    this.fields = fields;
    this.status = status;
  }
}

/** Where the page is, without the name and password that its address may hold and that fetch does not take. */
const BASE = location.origin + location.pathname.replace(/[^/]*$/, "");

async function refusal(response) {
  let detail;
  try {
    ({ detail } = await response.json());
  } catch {
    detail = null;
  }
  if (Array.isArray(detail)) {
    const fields = detail.map(({ loc = [], msg }) => ({
      path: loc[0] === "body" ? loc.slice(1) : loc,
      message: String(msg),
    }));
    return new Refusal(fields.map((f) => f.message).join(" "), fields, response.status);
  }
  const wait = response.headers.get("Retry-After");
  const again = wait ? ` Try again in ${wait} s.` : "";
  return new Refusal(
    (typeof detail === "string" ? detail : `The server answered ${response.status}.`) + again,
    [],
    response.status,
  );
}

/** GET `path`, or POST where there is a body. Resolves to the answer's JSON, rejects with a Refusal or AbortError. */
export async function ask(path, body, { signal } = {}) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(BASE + path, { ...(body === undefined ? {} : post), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response.json();
}

const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

function newTask() {
  const letters = crypto.getRandomValues(new Uint32Array(3));
  return `task(${Array.from(letters, (n) => n.toString(36)).join("")})`;
}

/**
 * One request of txt2img or img2img, which can be followed and cancelled.
 * report({queued, active, progress, eta, preview, ahead}): called a few times a second while it runs.
 */
export class Drawing {
  constructor(request, report, previews) {
    this.id = newTask();
    this.request = request;
    this.report = report;
    this.previews = previews;
    this.left = new AbortController(); // aborted: this client leaves, which frees its place
    this.over = new AbortController(); // aborted: it is answered, nothing is to be followed any more
    this.active = false;
    this.stopped = false;
  }

  /** Resolves to the answer. */
  async run() {
    const path = this.request.init_images ? "sdapi/v1/img2img" : "sdapi/v1/txt2img";
    this.#follow();
    try {
      return await ask(path, { ...this.request, force_task_id: this.id }, { signal: this.left.signal });
    } finally {
      this.over.abort();
    }
  }

  /** Ends it: what is drawn is answered with the picture of its last step, what waits leaves the queue. */
  cancel() {
    if (this.stopped || !this.active) return this.left.abort();
    this.stopped = true;
    ask("sdapi/v1/interrupt", { id_task: this.id }).catch(() => this.left.abort());
    setTimeout(() => this.left.abort(), 15_000); // a step of a large model takes a while, but not for ever
  }

  async #follow() {
    const { signal } = this.over;
    let shown = -1;
    await pause(150, signal);
    while (!signal.aborted) {
      const wanted = { id_task: this.id, live_preview: this.previews, id_live_preview: shown };
      try {
        const now = await ask("internal/progress", wanted, { signal });
        this.active = now.active;
        shown = now.id_live_preview ?? shown;
        if (!signal.aborted) this.report({ ...now, preview: now.live_preview, ahead: now.position ?? 0 });
      } catch {
        // the answer of the request itself says what is wrong
      }
      await pause(350, signal);
    }
  }
}
