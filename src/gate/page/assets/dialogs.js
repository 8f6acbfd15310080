// The dialogs that change something: restore, delete, edit and create. Each says what will happen before it does.

import { Refused, pathOf } from "./api.js";
import { ReasonedButton, checkField, element, labeledField, replaceChildren, uniqueId } from "./elements.js";
import { describeError } from "./notices.js";
import { planFacts } from "./plan.js";

/**
 * A modal dialog with a heading, a content, a place for errors and two buttons. `submit` gets a signal that is given when the
 * dialog is closed, and closes it by returning true.
 */
class ChangeDialog {
  constructor(session, title, label, kind, submit) {
    this.session = session;
    this.closed = new AbortController();
    this.content = element("div", {});
    this.errors = element("div", {});
    this.submitButton = new ReasonedButton(label, kind, () => this.#submit(submit));
    this.isBusy = false;
    const heading = element("h2", { id: uniqueId("title") }, title);
    const cancel = element("button", { type: "button", on: { click: () => this.close() } }, "Cancel");
    const send = (event) => {
      event.preventDefault();
      this.submitButton.button.click();
    };
    const form = element("form", { method: "post", on: { submit: send } }, this.content, this.errors,
      element("div", { class: "actions" }, this.submitButton.block, cancel));
    this.dialog = element("dialog", { "aria-labelledby": heading.id, on: { close: () => this.#leave() } }, heading, form);
    session.ended.signal.addEventListener("abort", () => this.close(), { signal: this.closed.signal });
  }

  show() {
    document.body.append(this.dialog);
    this.dialog.showModal();
  }

  close() {
    this.dialog.close();
    this.#leave();
  }

  #leave() {
    this.closed.abort();
    this.dialog.remove();
  }

  showError(error) {
    replaceChildren(this.errors, describeError(error, this.session));
  }

  async #submit(submit) {
    if (this.isBusy) return;
    this.isBusy = true;
    replaceChildren(this.errors, element("p", { class: "quiet", role: "status" }, "Sending"));
    try {
      if (await submit(this.closed.signal)) this.close();
      else replaceChildren(this.errors);
    } catch (error) {
      if (!this.closed.signal.aborted) this.showError(error);
    } finally {
      this.isBusy = false;
    }
  }
}

/** Restores the VM from the backup, after the plan was shown and the name of the VM was typed. */
export function openRestore(session, shown) {
  const { vm, id, vmName } = shown;
  const note = element("textarea", { rows: "2", maxlength: "1024" });
  openPlanned(session, shown, {
    op: "restore-Backup",
    title: `Restore ${vmName}`,
    label: `Restore ${vmName}`,
    typed: vmName,
    what: "the VM",
    fields: [labeledField("Note for the audit trail (optional)", note)],
    send: (headers, signal) => {
      const text = note.value.trim();
      const body = text ? { note: text } : {};
      return session.api.change("POST", `${pathOf(vm, id)}/restore`, { body, headers, signal });
    },
  });
}

/** Deletes the backup, after the plan was shown and its name was typed. */
export function openDelete(session, shown) {
  const { vm, id, backup } = shown;
  openPlanned(session, shown, {
    op: "delete-Backup",
    title: `Delete the backup ${backup.name}`,
    label: `Delete ${backup.name}`,
    typed: backup.name,
    what: "the backup",
    fields: [],
    send: (headers, signal) => session.api.change("DELETE", pathOf(vm, id), { headers, signal }),
  });
}

/** A dialog that makes a plan, shows it, and has it done only as it was shown. */
async function openPlanned(session, shown, { op, title, label, typed, what, fields, send }) {
  const place = element("div", { role: "status" }, "Looking at what this would do");
  const name = element("input", { autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  let plan;
  let hasFailed = false;
  const dialog = new ChangeDialog(session, title, label, "danger", async (signal) => {
    try {
      const headers = plan ? { "If-Plan": `"${plan.fingerprint}"` } : {};
      const { data } = await send(headers, signal);
      session.openStarted(data);
      return true;
    } catch (error) {
      if (!(error instanceof Refused) || error.code !== "PlanStale") throw error;
      // What was shown is no longer true: show what is, and have it confirmed again.
      name.value = "";
      await makePlan();
      throw error;
    }
  });
  const judge = () => {
    const blocked = plan?.refused?.length > 0;
    const isTyped = name.value.trim() === typed.trim();
    if (hasFailed) return;
    dialog.submitButton.disableFor(
      plan === undefined ? "The plan is being made."
        : blocked ? "The gateway would refuse this now, for the reasons above."
          : isTyped ? null : `Type the name of ${what}, ${typed}, to enable this.`);
  };
  const makePlan = async () => {
    plan = undefined;
    judge();
    plan = await readPlan(session, shown, op, dialog.closed.signal);
    replaceChildren(place, planFacts(plan, shown, op));
    judge();
  };
  name.addEventListener("input", judge);
  replaceChildren(dialog.content, place, fields, labeledField(`Type the name of ${what} to confirm: ${typed}`, name));
  dialog.show();
  name.focus();
  await makePlan().catch((error) => {
    if (dialog.closed.signal.aborted) return;
    hasFailed = true;
    replaceChildren(place, "What this would do could not be read.");
    dialog.submitButton.disableFor("Without a plan nothing is done. Close this and try again.");
    dialog.showError(error);
  });
}

/** The plan; `null` where the server makes none. */
async function readPlan(session, { vm, id }, op, signal) {
  try {
    const { data } = await session.api.question(`${pathOf(vm, id)}/plan`, { op }, signal);
    return data;
  } catch (error) {
    if (error instanceof Refused && error.code === "NoSuchRoute") return null;
    throw error;
  }
}

/** The tags in a text: one a line, because they may hold any other character. */
const tagsIn = (text) => text.split("\n").map((tag) => tag.trim()).filter(Boolean);

/** Changes name, description, tags and protection; only what differs is sent. */
export function openEdit(session, { vm, id, backup, etag }, permissions, reload) {
  const reasonFor = (action) => {
    const decision = permissions?.get(action);
    return decision && !decision.allowed ? decision.reason : null;
  };
  const [noUpdate, noProtect] = [reasonFor("update"), reasonFor("protect")];
  const name = element("input", { value: backup.name, maxlength: "255", required: true, disabled: Boolean(noUpdate) });
  const description = element("textarea", { rows: "3", maxlength: "4096", disabled: Boolean(noUpdate) }, backup.description ?? "");
  const tags = element("textarea", { rows: "3", disabled: Boolean(noUpdate) }, backup.tags.join("\n"));
  const guarded = element("input", { type: "checkbox", disabled: Boolean(noProtect), checked: backup.protected });
  const patch = () => {
    const changed = {};
    if (name.value !== backup.name) changed.name = name.value;
    if (description.value !== (backup.description ?? "")) changed.description = description.value || null;
    const wanted = tagsIn(tags.value);
    if (wanted.join("\n") !== backup.tags.join("\n")) changed.tags = wanted;
    if (guarded.checked !== backup.protected) changed.protected = guarded.checked;
    return changed;
  };
  const dialog = new ChangeDialog(session, `Edit ${backup.name}`, "Save", "main", async (signal) => {
    const body = patch();
    if (Object.keys(body).length > 0) {
      const headers = etag ? { "If-Match": etag } : {};
      const { data } = await session.api.change("PUT", pathOf(vm, id), { body, headers, signal });
      session.operations.take(data);
      const isSaved = data.progress === 100 && data.status < 300;
      if (data.progress === 100 && !isSaved) throw new Error(data.message);
      reload(isSaved ? "Saved" : "Accepted");
    }
    return true;
  });
  replaceChildren(dialog.content, labeledField("Name", name, noUpdate), labeledField("Description", description, noUpdate),
    labeledField("Tags, one a line", tags, noUpdate), checkField("Protected against deletion", guarded, noProtect));
  dialog.show();
}

/** Makes a backup of the VM. */
export function openCreate(session, vm, kinds, permissions) {
  const name = element("input", { maxlength: "255", required: true, autocomplete: "off" });
  const description = element("textarea", { rows: "3", maxlength: "4096" });
  const tags = element("textarea", { rows: "2" });
  const kind = element("select", {}, element("option", { value: "" }, "As the VM manager chooses"),
    kinds.map((word) => element("option", { value: word }, word)));
  const dialog = new ChangeDialog(session, `Make a backup of ${session.nameOf(vm)}`, "Make the backup", "main", async (signal) => {
    const body = { name: name.value.trim() };
    if (description.value) body.description = description.value;
    if (tagsIn(tags.value).length > 0) body.tags = tagsIn(tags.value);
    if (kind.value) body.type = kind.value;
    const { data } = await session.api.change("POST", `${pathOf(vm)}/backups`, { body, signal });
    session.openStarted(data);
    return true;
  });
  const judge = () => dialog.submitButton.disableFor(name.value.trim() ? null : "Give the backup a name.");
  name.addEventListener("input", judge);
  const canTag = !permissions || permissions.get("create")?.allowed !== false;
  replaceChildren(dialog.content, labeledField("Name", name), labeledField("Description", description),
    canTag && labeledField("Tags, one a line", tags), kinds.length > 1 && labeledField("Kind", kind));
  judge();
  dialog.show();
}
