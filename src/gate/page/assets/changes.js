// The operations that this page knows, by their numbers: what the stream and the answers to changes say.

import { isFinished } from "./words.js";

/** Finished ones beyond these are forgotten; the gateway still has them. */
const KEPT_MAX = 500;

export class Operations {
  #known = new Map();
  #listeners = new Set();

  /** The newest Status of an operation, as far as it is known. */
  find(seq) {
    return this.#known.get(seq);
  }

  /** All that are known, newest first. */
  list() {
    return [...this.#known.values()].sort((one, other) => compareNumbers(other.seq, one.seq));
  }

  /** Takes a Status, unless a newer one of the same operation is known. */
  take(status) {
    if (typeof status?.seq !== "string") return;
    const before = this.#known.get(status.seq);
    // Answers and events may arrive in another order than they were sent in.
    if (before && (isFinished(before) || before.progress > status.progress)) return;
    if (before && before.state === status.state && before.progress === status.progress) return;
    this.#known.set(status.seq, status);
    this.#forgetOldest();
    for (const listener of [...this.#listeners]) listener(status, before);
  }

  /** Calls the listener with every change until the signal is given. */
  subscribe(listener, signal) {
    this.#listeners.add(listener);
    signal.addEventListener("abort", () => this.#listeners.delete(listener), { once: true });
  }

  #forgetOldest() {
    if (this.#known.size <= KEPT_MAX) return;
    const finished = this.list().filter(isFinished);
    for (const status of finished.slice(KEPT_MAX / 2)) this.#known.delete(status.seq);
  }
}

/** Numbers of operations are too large for numbers of JavaScript: the longer one is larger. */
function compareNumbers(one, other) {
  return one.length - other.length || (one < other ? -1 : one > other ? 1 : 0);
}

/** The pages of a list that have been seen, by the paths that lead to them. */
export class ListPages {
  #paths;
  #index = 0;
  #next = null;

  constructor(first) {
    this.#paths = [first];
  }

  get path() {
    return this.#paths[this.#index];
  }

  get number() {
    return this.#index + 1;
  }

  get hasPrevious() {
    return this.#index > 0;
  }

  get hasNext() {
    return this.#next !== null;
  }

  /** Notes what the page that is shown says about the next one. */
  setNext(next) {
    this.#next = next;
  }

  /** Begins anew with another list. */
  restart(first) {
    this.#paths = [first];
    this.#index = 0;
    this.#next = null;
  }

  /** Goes one page forth or back. */
  turn(step) {
    if (step > 0 && this.#next) {
      this.#paths.length = this.#index + 1;
      this.#paths.push(this.#next);
    }
    this.#index = Math.max(0, Math.min(this.#paths.length - 1, this.#index + step));
    this.#next = null;
  }
}
