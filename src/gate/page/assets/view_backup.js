// One backup: what it is, and what can be done with it, or why not.

import { idsIn, pathOf } from "./api.js";
import { openDelete, openEdit, openRestore } from "./dialogs.js";
import { ReasonedButton, descriptionList, element, replaceChildren } from "./elements.js";
import { announce } from "./notices.js";
import { backupState, formatBytes, isFinished, timeWithAge } from "./words.js";

export async function showBackup(session, place, { signal, setTitle, attempt }, vm, id) {
  setTitle("Backup");
  const [facts, actions] = [element("div", {}), element("div", { class: "actions" })];
  const back = element("a", { href: `#/vms/${encodeURIComponent(vm)}` }, "All backups of this VM");
  replaceChildren(place, element("p", {}, back), facts, actions);
  if (!session.vmNames.has(vm)) {
    const { data } = await session.api.read(pathOf(vm), signal);
    session.vmNames.set(vm, data.name);
  }
  const load = async () => {
    const [read, permissions, capabilities] = await Promise.all([
      session.api.read(pathOf(vm, id), signal),
      session.readPermissions(vm, id, signal),
      session.readCapabilities(vm, signal),
    ]);
    const shown = { vm, id, backup: read.data, etag: read.etag, vmName: session.nameOf(vm) };
    setTitle(`Backup ${shown.backup.name} of ${shown.vmName}`);
    replaceChildren(facts, backupFacts(shown));
    const reload = (said) => {
      if (said) announce(said);
      return attempt(facts, load);
    };
    replaceChildren(actions, actionButtons(session, shown, permissions, capabilities, reload));
  };
  session.operations.subscribe((status, before) => {
    const target = idsIn(status.target_uri);
    const isGone = status.op === "delete-Backup" && status.state === "SUCCESS" && target.backup === id;
    if (before && target.vm === vm && isFinished(status) && !isGone) attempt(facts, load);
  }, signal);
  await load();
}

function backupFacts({ vm, id, vmName, backup }) {
  return descriptionList([
    ["VM", `${vmName} (id ${vm})`],
    ["Name", backup.name],
    ["Id", id],
    ["Made", timeWithAge(backup.created)],
    ["Description", backup.description],
    ["Kind", backup.type],
    ["Size", formatBytes(backup.size)],
    ["Tags", backup.tags.length > 0 ? backup.tags.map((tag) => [element("span", { class: "tag" }, tag), " "]) : "none"],
    ["Protected", backup.protected ? "yes, it cannot be deleted" : "no"],
    ["State", backupState(backup.state)],
  ]);
}

/** The buttons of what the VM manager can do, each with the reason why it cannot be used now, if there is one. */
function actionButtons(session, shown, permissions, capabilities, reload) {
  const { backup, vmName } = shown;
  const isOffered = (verb) => !capabilities || capabilities.verbs[verb]?.supported;
  const refusal = (action) => {
    const decision = permissions?.get(action);
    return decision && !decision.allowed ? decision.reason : null;
  };
  const buttons = [];
  const add = (verb, label, kind, reason, open) => {
    if (!isOffered(verb)) return;
    const button = new ReasonedButton(label, kind, open);
    button.disableFor(reason);
    buttons.push(button.block);
  };
  const unusable = backup.state === "AVAILABLE" ? null : `The backup is ${backupState(backup.state)}. It must be available.`;
  add("restore", `Restore ${vmName}\u2026`, "main", refusal("restore") ?? unusable, () => openRestore(session, shown));
  const cannotEdit = refusal("update") && refusal("protect") ? refusal("update") : null;
  add("update", "Edit\u2026", "", cannotEdit, () => openEdit(session, shown, permissions, reload));
  const guarded = backup.protected ? "The backup is protected against deletion. Edit it to remove the protection." : null;
  add("delete", "Delete\u2026", "danger", refusal("delete") ?? guarded, () => openDelete(session, shown));
  return buttons;
}
