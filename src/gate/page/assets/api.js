// Requests to the API of the gateway that serves this page, and what its refusals say.

/** Where the API is: beside the folder of this page, also behind a proxy that serves the gateway below a path. */
export const BASE = new URL("../", document.baseURI);

const VERSION = "0.1";
const PAUSES = [500, 1000, 2000, 4000, 8000];

/** A refusal of the gateway, in its own words. */
export class Refused extends Error {
  constructor(response, body) {
    const first = body?.message?.[0] ?? {};
    super(first.text ?? body?.detail ?? `The gateway answered with status ${response.status}.`);
    this.status = response.status;
    this.code = first.code ?? "";
    this.hint = first.hint ?? "";
    this.field = first.field ?? "";
    this.request = body?.instance ?? response.headers.get("X-Request-Id") ?? "";
    this.retryAfter = Number(response.headers.get("Retry-After")) || 0;
  }
}

/** No answer came: the request may or may not have reached the gateway. */
export class ConnectionLost extends Error {
  constructor() {
    super("The gateway cannot be reached.");
  }
}

/** A pause that ends early when the signal is given. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

/** The value of `Authorization` for a password, whose characters may be any. */
export function basicAuthorization(user, password) {
  const bytes = new TextEncoder().encode(`${user}:${password}`);
  return `Basic ${btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))}`;
}

/** A key for one change. `crypto.randomUUID` is missing where the page is not encrypted. */
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The path of a VM, or of one of its backups, below `BASE`. */
export function pathOf(vm, backup) {
  const path = `vms/${encodeURIComponent(vm)}`;
  return backup === undefined ? path : `${path}/backups/${encodeURIComponent(backup)}`;
}

/** The ids in `target_uri` of a Status, or in the `uri` of a backup. */
export function idsIn(uri) {
  const found = /\/vms\/([^/?#]+)\/backups\/([^/?#]+)/.exec(uri ?? "");
  return found ? { vm: decodeURIComponent(found[1]), backup: decodeURIComponent(found[2]) } : { vm: "", backup: "" };
}

/** Makes requests with the credentials of one person. */
export class Api {
  #authorization;

  /** `report` learns of lost (false) and working (true) connections, `expire` of credentials that are no longer accepted. */
  constructor(authorization, report, expire) {
    this.#authorization = authorization;
    this.report = report;
    this.expire = expire;
  }

  /**
   * One request. Never with credentials of the browser, so that it has no reason to ask for any, and never from its cache.
   */
  async fetch(method, path, { headers = {}, body, signal } = {}) {
    const sent = {
      Accept: "application/json",
      "X-Cloud-Client-Specification-Version": VERSION,
      Authorization: this.#authorization,
      ...headers,
    };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    const options = {
      method, headers: sent, signal, credentials: "omit", cache: "no-store", redirect: "error", referrerPolicy: "no-referrer",
    };
    if (body !== undefined) options.body = JSON.stringify(body);
    try {
      return await fetch(new URL(path, BASE), options);
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      // Wrong use of `fetch` is a `TypeError` too, but does not depend on what is sent here.
      if (error instanceof TypeError) throw new ConnectionLost();
      throw error;
    }
  }

  /** One request and its whole answer: `data`, `etag` and the path of the `next` page. */
  async ask(method, path, options) {
    const response = await this.fetch(method, path, options);
    let data = null;
    try {
      const text = await response.text();
      data = text ? JSON.parse(text) : null;
    } catch (error) {
      if (options?.signal?.aborted) throw options.signal.reason;
      if (response.ok || !(error instanceof SyntaxError)) throw new ConnectionLost();
    }
    if (!response.ok) {
      const refused = new Refused(response, data);
      if (refused.status === 401) this.expire();
      throw refused;
    }
    return { data, status: response.status, etag: response.headers.get("ETag"), next: nextPath(response) };
  }

  /** A read, repeated until there is an answer. */
  read(path, signal) {
    return this.#persist(signal, () => this.ask("GET", path, { signal }));
  }

  /**
   * A change, sent again with the same key until there is an answer: the gateway makes one operation of all of them.
   */
  change(method, path, { body, headers = {}, signal } = {}) {
    const keyed = { "Idempotency-Key": newKey(), ...headers };
    return this.#persist(signal, () => this.ask(method, path, { body, headers: keyed, signal }));
  }

  /** A question that is asked by POST and changes nothing. */
  question(path, body, signal) {
    return this.#persist(signal, () => this.ask("POST", path, { body, signal }));
  }

  async #persist(signal, send) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        const answer = await send();
        this.report(true);
        return answer;
      } catch (error) {
        const wait = this.#pauseAfter(error, attempt);
        if (wait === null) throw error;
        await pause(wait, signal);
      }
    }
  }

  /** How long to wait before a request is sent again; `null` when that would change nothing. */
  #pauseAfter(error, attempt) {
    const usual = PAUSES[Math.min(attempt, PAUSES.length - 1)] * (0.75 + Math.random() / 2);
    if (error instanceof ConnectionLost) {
      this.report(false);
      return usual;
    }
    // A gateway that stops is about to be replaced by another one; the rest is for the person to decide.
    const passes = error instanceof Refused && ["Stopping", "RateLimited", "TooManyAtOnce"].includes(error.code);
    return passes ? Math.max(usual, error.retryAfter * 1000) : null;
  }
}

/** The path of the next page, below `BASE`. */
function nextPath(response) {
  const found = /<\/?([^>]+)>\s*;\s*rel="next"/.exec(response.headers.get("Link") ?? "");
  return found ? found[1] : null;
}
