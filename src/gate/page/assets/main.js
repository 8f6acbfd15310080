// The frame of the page: signing in and out, which view is shown, the connection, and what is announced to screen readers.

import { Api, Refused, basicAuthorization, idsIn, pathOf } from "./api.js";
import { Operations } from "./changes.js";
import { checkField, element, labeledField, replaceChildren } from "./elements.js";
import { StatusStream } from "./events.js";
import { announce, attempt, describeError } from "./notices.js";
import { showBackup } from "./view_backup.js";
import { showBackups } from "./view_backups.js";
import { showOperation, showOperations } from "./view_operations.js";
import { showVms } from "./view_vms.js";
import { isFinished, operationName } from "./words.js";

const KEPT = "snapgate";
/** A page that is not looked at gives its connection back after that time: browsers allow six to one server over HTTP/1.1. */
const HIDDEN_MAX = 60000;

const byId = (id) => document.getElementById(id);
const main = byId("main");

/** What one person does between signing in and out. */
class Session {
  constructor(user, authorization) {
    this.user = user;
    this.ended = new AbortController();
    this.operations = new Operations();
    this.vmNames = new Map();
    this.capabilities = new Map();
    this.started = new Set();
    this.publicAddress = null;
    this.reset = new EventTarget();
    this.isFollowing = true;
    // Other requests may work while the stream does not: what is shown stands still then, and the page says so.
    const report = (isWorking) => showConnection(isWorking && this.isFollowing);
    this.api = new Api(authorization, report, () => endSession("Your credentials are no longer accepted. Sign in again."));
    this.stream = new StatusStream(this.api, {
      onStatus: (status) => this.operations.take(status),
      onReset: () => this.reset.dispatchEvent(new Event("reset")),
      onConnection: (isWorking) => {
        this.isFollowing = isWorking;
        showConnection(isWorking);
      },
    });
    this.operations.subscribe((status, before) => this.#announceEnd(status, before), this.ended.signal);
  }

  /** What the page calls a VM: its name where that is known. */
  nameOf(vm) {
    return this.vmNames.get(vm) || vm;
  }

  /** What can be done with the backups of a VM; `null` where the server does not say. */
  async readCapabilities(vm, signal) {
    if (!this.capabilities.has(vm)) {
      const found = await this.api.read(`${pathOf(vm)}/capabilities`, signal).catch(ignoreAbsent);
      this.capabilities.set(vm, found?.data ?? null);
    }
    return this.capabilities.get(vm);
  }

  /** The decisions about each action, by its word; `null` where the server does not say. */
  async readPermissions(vm, backup, signal) {
    const query = new URLSearchParams(backup === undefined ? { vm } : { vm, b: backup });
    const found = await this.api.read(`permissions?${query}`, signal).catch(ignoreAbsent);
    return found && new Map(found.data.actions.map((decision) => [decision.action, decision]));
  }

  /** Notes an operation that this page began, and shows it. */
  openStarted(status) {
    this.started.add(status.seq);
    this.operations.take(status);
    location.hash = `#/operations/${encodeURIComponent(status.seq)}`;
  }

  #announceEnd(status, before) {
    if (!isFinished(status)) return;
    const wasFollowed = this.started.delete(status.seq) || (before && !isFinished(before));
    if (wasFollowed) announce(`${operationName(status.op)}, VM ${this.nameOf(idsIn(status.target_uri).vm)}: ${status.message}`);
  }
}

/** For what older servers do not have: the page then does without. */
function ignoreAbsent(error) {
  if (error instanceof Refused && error.code === "NoSuchRoute") return null;
  throw error;
}

let session = null;
let view = new AbortController();
let hiddenTimer = 0;

function showConnection(isWorking) {
  const line = byId("connection");
  const text = session === null ? "" : isWorking ? "Connected" : "Connection lost, trying again";
  line.classList.toggle("lost", session !== null && !isWorking);
  if (line.textContent !== text) line.textContent = text;
}

const VIEWS = [
  [/^#\/vms$/, showVms],
  [/^#\/vms\/([^/]+)$/, showBackups],
  [/^#\/vms\/([^/]+)\/([^/]+)$/, showBackup],
  [/^#\/operations$/, showOperations],
  [/^#\/operations\/([^/]+)$/, showOperation],
];

/** Shows what the part of the address after `#` names. */
async function showView() {
  if (!session) return;
  view.abort();
  view = new AbortController();
  const { signal } = view;
  document.querySelectorAll("dialog").forEach((dialog) => dialog.remove());
  const [show, parts] = findView(location.hash);
  for (const link of document.querySelectorAll("nav#navigation a")) {
    const isCurrent = location.hash.startsWith(link.getAttribute("href"));
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const place = element("div", {});
  const heading = element("h1", { tabindex: "-1" }, "Loading");
  replaceChildren(main, heading, place);
  const setTitle = (text) => {
    heading.textContent = text;
    document.title = `${text} - snapgate`;
  };
  const tools = { signal, setTitle, attempt: (part, action) => attempt(session, part, signal, action) };
  const shown = tools.attempt(place, () => show(session, place, tools, ...parts));
  // The view has set its title by now. Later the focus may be where the person moved it.
  heading.focus();
  await shown;
}

function findView(hash) {
  for (const [pattern, show] of VIEWS) {
    const found = pattern.exec(hash);
    try {
      if (found) return [show, found.slice(1).map(decodeURIComponent)];
    } catch {
      // Not an address that this page made.
    }
  }
  return [showVms, []];
}

function beginSession(user, authorization) {
  session = new Session(user, authorization);
  byId("navigation").hidden = false;
  byId("account").hidden = false;
  byId("user").textContent = user;
  showConnection(true);
  session.stream.start();
  if (!location.hash.startsWith("#/")) history.replaceState(null, "", "#/vms");
  showView();
}

/** Forgets the credentials and everything that was read with them. */
function endSession(reason) {
  session?.stream.stop();
  session?.ended.abort();
  session = null;
  view.abort();
  sessionStorage.removeItem(KEPT);
  document.querySelectorAll("dialog").forEach((dialog) => dialog.remove());
  byId("navigation").hidden = true;
  byId("account").hidden = true;
  showConnection(true);
  showSignIn(reason);
}

function showSignIn(reason) {
  document.title = "Sign in - snapgate";
  const method = element("select", {}, element("option", { value: "password" }, "User name and password"),
    element("option", { value: "token" }, "Token"));
  const user = element("input", { autocomplete: "username", autocapitalize: "none", spellcheck: "false", required: true });
  const secret = element("input", { type: "password", autocomplete: "current-password", required: true });
  const keep = element("input", { type: "checkbox" });
  const message = element("div", {});
  const userField = labeledField("User name", user);
  const secretField = labeledField("Password", secret);
  const secretLabel = secretField.querySelector("label");
  method.addEventListener("change", () => {
    const isToken = method.value === "token";
    userField.hidden = isToken;
    user.required = !isToken;
    secretLabel.textContent = isToken ? "Token" : "Password";
  });
  const submit = element("button", { class: "main" }, "Sign in");
  const signIn = async (event) => {
    event.preventDefault();
    const isToken = method.value === "token";
    const authorization = isToken ? `Bearer ${secret.value.trim()}` : basicAuthorization(user.value, secret.value);
    submit.disabled = true;
    const failure = await checkCredentials(authorization);
    submit.disabled = false;
    if (failure) {
      replaceChildren(message, failure);
      secret.focus();
      secret.select();
      return;
    }
    const name = isToken ? "token" : user.value;
    if (keep.checked) sessionStorage.setItem(KEPT, JSON.stringify([name, authorization]));
    beginSession(name, authorization);
  };
  const form = element("form", { class: "sign-in", method: "post", on: { submit: signIn } },
    element("h1", {}, "Sign in"),
    reason && element("div", { class: "notice", role: "alert" }, reason),
    message,
    labeledField("Sign in with", method), userField, secretField,
    checkField("Keep me signed in for this tab", keep, "Until the tab is closed. Otherwise until the page is loaded again."),
    submit);
  replaceChildren(main, form);
  user.focus();
}

/** What is wrong with the credentials, as an element; `null` when they are accepted. */
async function checkCredentials(authorization) {
  const api = new Api(authorization, () => {}, () => {});
  try {
    await api.ask("GET", "permissions");
    return null;
  } catch (error) {
    if (error instanceof Refused && error.status === 401) {
      return element("div", { class: "notice error", role: "alert" }, "The credentials are wrong, or no longer valid.");
    }
    // A server without this resource is asked for something else later.
    if (error instanceof Refused && error.code === "NoSuchRoute") return null;
    return describeError(error, null);
  }
}

byId("sign-out").addEventListener("click", () => endSession(null));
addEventListener("hashchange", showView);
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (!document.hidden) session?.stream.start();
  else hiddenTimer = setTimeout(() => session?.stream.stop(), HIDDEN_MAX);
});

/** The credentials that were kept for this tab, if they can be read. */
function keptCredentials() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT));
    return Array.isArray(kept) && kept.length === 2 ? kept : null;
  } catch {
    return null;
  }
}

const kept = keptCredentials();
if (kept) beginSession(...kept);
else showSignIn(null);
