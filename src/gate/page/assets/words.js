// Words for what the API sends: times, sizes, states and operations. Words that are unknown are shown as they came.

import { element } from "./elements.js";

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes as a person reads them: `16 MiB`. */
export function formatBytes(bytes) {
  if (typeof bytes !== "number") return null;
  let [value, unit] = [bytes, 0];
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit > 0 && value < 10 ? 1 : 0;
  return `${value.toFixed(digits).replace(/\.0$/, "")} ${UNITS[unit]}`;
}

/** How long ago a time was: `3 hours ago`. */
export function formatAge(text, now = Date.now()) {
  const seconds = Math.round((now - Date.parse(text)) / 1000);
  if (Number.isNaN(seconds)) return "";
  if (seconds < 0) return "in the future";
  return seconds < 5 ? "just now" : `${formatDuration(seconds)} ago`;
}

/** A number of seconds in its largest unit. */
export function formatDuration(seconds) {
  const steps = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [unit, length] = steps.find(([, length]) => seconds >= length * (length > 1 ? 1.5 : 1)) ?? ["second", 1];
  const count = Math.round(seconds / length);
  return `${count} ${unit}${count === 1 ? "" : "s"}`;
}

/** A time in the reader's own time zone. */
export function formatTime(text) {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return String(text);
  const pad = (number) => String(number).padStart(2, "0");
  const date = `${time.getFullYear()}-${pad(time.getMonth() + 1)}-${pad(time.getDate())}`;
  return `${date} ${pad(time.getHours())}:${pad(time.getMinutes())}:${pad(time.getSeconds())}`;
}

/** A time with its age, as an element. */
export function timeWithAge(text) {
  if (!text) return null;
  return element("time", { datetime: text }, formatTime(text), " (", formatAge(text), ")");
}

const RUN_STATES = { STARTED: "running", STOPPED: "stopped", SLEEPING: "suspended" };
const BACKUP_STATES = {
  CREATING: "being made",
  AVAILABLE: "available",
  UPDATING: "being changed",
  RESTORING: "being restored",
  DELETING: "being deleted",
  ERROR: "unusable",
};
const OPERATION_STATES = {
  QUEUED: "waiting for its turn",
  RUNNING: "running",
  SUCCESS: "succeeded",
  FAILED: "failed",
  CANCELLED: "cancelled",
  UNKNOWN: "outcome unknown",
};
const OPERATIONS = {
  "back_up": "Backup",
  "update-Backup": "Change of a backup",
  "delete-Backup": "Deletion of a backup",
  "restore-Backup": "Restore",
};

// Own members alone: a word such as `constructor` is unknown.
const wordFrom = (words, key) => (key && Object.hasOwn(words, key) ? words[key] : (key ?? ""));

export const runState = (state) => wordFrom(RUN_STATES, state);
export const backupState = (state) => wordFrom(BACKUP_STATES, state);
export const operationState = (state) => wordFrom(OPERATION_STATES, state);
export const operationName = (op) => wordFrom(OPERATIONS, op);
export const BACKUP_STATE_WORDS = Object.entries(BACKUP_STATES);

/** Whether an operation is over. */
export const isFinished = (status) => status.progress === 100;

/** The class of an outcome, which colors it; the words say the same. */
export function outcomeClass(status) {
  if (!isFinished(status)) return "";
  return status.state === "SUCCESS" ? "good" : "bad";
}
