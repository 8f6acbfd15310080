// The stream of all Statuses: read with `fetch`, because `EventSource` can send neither credentials nor a last event id.

import { ConnectionLost, Refused, pause } from "./api.js";

const PAUSE_MIN = 1000;
const PAUSE_MAX = 30000;
/** The gateway shows a sign of life every 15 seconds. */
const SILENCE_MAX = 45000;
const POLL_PAUSE = 5000;

/** Takes the text of a stream apart as it arrives (WHATWG HTML, section 9.2). */
export class EventParser {
  #rest = "";
  #data = [];
  #id = null;
  #type = "";

  /** `onEvent` gets `{ id, type, data }`, `onRetry` milliseconds. */
  constructor(onEvent, onRetry) {
    this.onEvent = onEvent;
    this.onRetry = onRetry;
  }

  /** Takes the next piece of the text. */
  push(text) {
    this.#rest += text;
    // A carriage return at the very end may be half of a line break.
    const lines = this.#rest.split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    lines.forEach((line) => this.#line(line));
  }

  #line(line) {
    if (line === "") {
      if (this.#data.length > 0) this.onEvent({ id: this.#id, type: this.#type || "message", data: this.#data.join("\n") });
      [this.#data, this.#type, this.#id] = [[], "", null];
      return;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "event") this.#type = value;
    else if (name === "retry" && /^\d+$/.test(value)) this.onRetry(Number(value));
  }
}

/** Follows all operations that the person may see, for as long as it is started. */
export class StatusStream {
  #stop = null;
  #lastEvent = null;
  #retry = 2000;

  /** `onStatus` gets each Status, `onReset` is called when some may have been missed, `onConnection` with true and false. */
  constructor(api, { onStatus, onReset, onConnection }) {
    this.api = api;
    this.onStatus = onStatus;
    this.onReset = onReset;
    this.onConnection = onConnection;
  }

  start() {
    if (this.#stop) return;
    this.#stop = new AbortController();
    this.#follow(this.#stop.signal).catch(() => {});
  }

  stop() {
    this.#stop?.abort();
    this.#stop = null;
  }

  async #follow(signal) {
    let failures = 0;
    while (!signal.aborted) {
      const begun = Date.now();
      let wait = this.#retry;
      try {
        await this.#readStream(signal);
        failures = 0;
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Refused && error.status === 401) return;
        if (error instanceof Refused && [404, 406].includes(error.status)) {
          await this.#poll(signal);
          return;
        }
        // A stream that worked for a while was cut off: the next attempt is made soon.
        failures = Date.now() - begun > 10000 ? 1 : failures + 1;
        wait = Math.min(PAUSE_MAX, PAUSE_MIN * 2 ** (failures - 1));
        if (error instanceof Refused) wait = Math.max(wait, error.retryAfter * 1000);
        this.onConnection(false);
      }
      await pause(wait * (0.75 + Math.random() / 2), signal);
    }
  }

  /** Reads one stream to its end. */
  async #readStream(signal) {
    const headers = { Accept: "text/event-stream" };
    if (this.#lastEvent) headers["Last-Event-ID"] = this.#lastEvent;
    const cut = new AbortController();
    const end = () => cut.abort();
    signal.addEventListener("abort", end, { once: true });
    let watch = setTimeout(end, SILENCE_MAX);
    try {
      const response = await this.api.fetch("GET", "statuses", { headers, signal: cut.signal });
      if (!response.ok) {
        const refused = new Refused(response, await response.json().catch(() => null));
        if (refused.status === 401) this.api.expire();
        // An id that this gateway does not know: begin anew.
        if (refused.code === "MalformedLastEventId") this.#lastEvent = null;
        throw refused;
      }
      this.onConnection(true);
      const parser = new EventParser((event) => this.#take(event), (retry) => {
        this.#retry = retry;
      });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(watch);
        watch = setTimeout(end, SILENCE_MAX);
        parser.push(value);
      }
    } catch (error) {
      // Cut off for its silence, or by the network in the middle.
      throw error instanceof Refused ? error : new ConnectionLost();
    } finally {
      clearTimeout(watch);
      signal.removeEventListener("abort", end);
    }
  }

  #take(event) {
    if (event.id) this.#lastEvent = event.id;
    if (event.type === "reset") {
      this.onReset();
      return;
    }
    try {
      this.onStatus(JSON.parse(event.data));
    } catch {
      // A later version may send events of another form.
    }
  }

  /** For servers without a stream: asks for the list again and again. */
  async #poll(signal) {
    while (!signal.aborted) {
      const { data } = await this.api.read("statuses?limit=50", signal);
      data.statuses.toReversed().forEach(this.onStatus);
      this.onConnection(true);
      await pause(POLL_PAUSE, signal);
    }
  }
}
