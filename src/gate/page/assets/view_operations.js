// Operations: those that run, as they go on, and those that ended. What is shown follows the stream of all Statuses.

import { Refused, idsIn } from "./api.js";
import { ListPages } from "./changes.js";
import { ReasonedButton, dataTable, descriptionList, element, pageButtons, replaceChildren } from "./elements.js";
import { announce, describeError } from "./notices.js";
import { formatTime, isFinished, operationName, operationState, outcomeClass, timeWithAge } from "./words.js";

const PAGE = 50;

export async function showOperations(session, place, { signal, setTitle, attempt }) {
  setTitle("Operations");
  const [running, list] = [element("div", {}), element("div", {})];
  const pages = new ListPages(`statuses?limit=${PAGE}`);
  replaceChildren(place, element("h2", {}, "Running"), running, element("h2", {}, "History"), list);
  let shown = [];
  const draw = () => {
    const unfinished = session.operations.list().filter((status) => !isFinished(status));
    if (!updateProgress(running, unfinished)) replaceChildren(running, unfinished.length > 0
      ? operationTable(session, "Running operations", unfinished)
      : element("p", { class: "quiet" }, "No operation is running."));
    const finished = shown.map((status) => session.operations.find(status.seq) ?? status).filter(isFinished);
    // On the first page the new ones come on top as they end.
    const listed = new Set(finished.map((status) => status.seq));
    const more = pages.hasPrevious ? [] : session.operations.list().filter((status) => isFinished(status) && !listed.has(status.seq));
    const newest = shown[0]?.created ?? "";
    const all = [...more.filter((status) => status.created >= newest), ...finished].slice(0, 2 * PAGE);
    replaceChildren(list, all.length > 0
      ? operationTable(session, "Operations that ended", all)
      : element("p", { class: "quiet" }, "No operation has ended yet."), pageButtons(pages, (step) => {
      pages.turn(step);
      attempt(list, load);
    }));
  };
  const load = async () => {
    const page = await session.api.read(pages.path, signal);
    shown = page.data.statuses;
    pages.setNext(page.next);
    // The oldest first, as they happened.
    for (const status of shown.toReversed()) session.operations.take(status);
    draw();
  };
  session.operations.subscribe(draw, signal);
  session.reset.addEventListener("reset", () => attempt(list, load), { signal });
  await load();
}

function operationTable(session, caption, statuses) {
  const rows = statuses.map((status) => {
    const { vm, backup } = idsIn(status.target_uri);
    return [
      element("a", { href: `#/operations/${encodeURIComponent(status.seq)}` }, operationName(status.op)),
      session.nameOf(vm),
      backup,
      element("span", { class: outcomeClass(status) }, operationState(status.state)),
      isFinished(status) ? status.message : progressBar(status),
      timeWithAge(status.created),
    ];
  });
  return dataTable(caption, ["Operation", "VM", "Backup", "State", "Result", "Begun"], rows);
}

function progressBar(status) {
  const bar = element("progress", { max: "100", value: status.progress, "aria-label": "Progress" });
  return element("span", { "data-seq": status.seq }, bar, " ", element("span", {}, `${status.progress}%`));
}

/**
 * Moves the bars of these operations, if nothing else about them changed since the last time: what is around them then stays,
 * and with it the focus and the place of a screen reader.
 */
function updateProgress(place, statuses) {
  const key = statuses.map((status) => `${status.seq} ${status.state}`).join();
  const isSame = place.dataset.shown === key;
  place.dataset.shown = key;
  for (const status of isSame ? statuses : []) {
    const bar = place.querySelector(`[data-seq="${CSS.escape(status.seq)}"]`);
    if (!bar) continue;
    bar.firstChild.value = status.progress;
    bar.lastChild.textContent = `${status.progress}%`;
  }
  return isSame;
}

export async function showOperation(session, place, { signal, setTitle }, seq) {
  setTitle("Operation");
  const [facts, actions, errors] = [element("div", {}), element("div", { class: "actions" }), element("div", {})];
  replaceChildren(place, element("p", {}, element("a", { href: "#/operations" }, "All operations")), facts, actions, errors);
  let status = session.operations.find(seq);
  if (!status) {
    const { data } = await session.api.read(`statuses?seq=${encodeURIComponent(seq)}`, signal);
    session.operations.take(data);
    status = data;
  }
  const { vm } = idsIn(status.target_uri);
  const cancel = new ReasonedButton("Cancel this operation", "", async () => {
    replaceChildren(errors);
    try {
      await session.api.ask("DELETE", `statuses?seq=${encodeURIComponent(seq)}`, { signal });
      announce("Cancellation was asked for");
    } catch (error) {
      if (!signal.aborted) replaceChildren(errors, describeError(error, session));
    }
  });
  let capability = null;
  const draw = () => {
    setTitle(`${operationName(status.op)} of ${session.nameOf(vm)}`);
    if (!updateProgress(facts, [status])) replaceChildren(facts, operationFacts(session, status));
    if (isFinished(status)) cancel.block.remove();
    else if (!cancel.block.isConnected) actions.append(cancel.block);
    const isFixed = status.state === "RUNNING" && capability?.cancel === false;
    cancel.disableFor(isFixed ? "The VM manager cannot cancel this once it runs." : null);
  };
  session.operations.subscribe((changed) => {
    if (changed.seq !== seq) return;
    status = changed;
    draw();
  }, signal);
  draw();
  if (isFinished(status)) return;
  capability = await readCapability(session, vm, status.op, signal);
  draw();
}

const VERBS = { "back_up": "create", "update-Backup": "update", "delete-Backup": "delete", "restore-Backup": "restore" };

/** What the VM manager can do while it runs; `null` where this person may not know. */
async function readCapability(session, vm, op, signal) {
  try {
    const capabilities = await session.readCapabilities(vm, signal);
    return capabilities?.verbs[VERBS[op]] ?? null;
  } catch (error) {
    if (error instanceof Refused) return null;
    throw error;
  }
}

function operationFacts(session, status) {
  const { vm, backup } = idsIn(status.target_uri);
  const path = `#/vms/${encodeURIComponent(vm)}`;
  const unknown = status.state === "UNKNOWN" && element("div", { class: "notice error" },
    "The outcome could not be determined. Look at the VM and its backups before you do this again.");
  return [
    unknown,
    descriptionList([
      ["State", element("span", { class: outcomeClass(status) }, operationState(status.state))],
      ["Progress", isFinished(status) ? null : progressBar(status)],
      ["Result", status.message],
      ["VM", element("a", { href: path }, session.nameOf(vm))],
      ["Backup", element("a", { href: `${path}/${encodeURIComponent(backup)}` }, backup)],
      ["Accepted", timeWithAge(status.created)],
      ["Started", timeWithAge(status.started)],
      ["Ended", timeWithAge(status.completed)],
      ["Kept until", status.expires && formatTime(status.expires)],
      ["Status code", status.status],
      ["Passed over", status.ignored?.join(", ")],
      ["Settled by", status.settled_by],
      ["Number", status.seq],
      ["Address", element("code", {}, status.status_uri)],
    ]),
    evidence(status),
  ];
}

/** What was looked at to find the outcome, where the server says so. */
function evidence(status) {
  if (!Array.isArray(status.evidence) || status.evidence.length === 0) return null;
  const rows = status.evidence.map((entry) => [timeWithAge(entry.at), String(entry.what ?? ""), String(entry.found ?? "")]);
  return [element("h2", {}, "Evidence"), dataTable("Evidence", ["Time", "Looked at", "Found"], rows)];
}
