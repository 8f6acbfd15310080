// The backups of one VM, a page at a time: filtered, sorted and counted by the gateway.

import { Refused, idsIn, pathOf } from "./api.js";
import { ListPages } from "./changes.js";
import { openCreate } from "./dialogs.js";
import { ReasonedButton, dataTable, element, labeledField, pageButtons, replaceChildren } from "./elements.js";
import { BACKUP_STATE_WORDS, backupState, formatBytes, isFinished, runState, timeWithAge } from "./words.js";

const PAGE = 100;
const TYPING_PAUSE = 250;
const SORTS = [
  ["-created", "Newest first"], ["created", "Oldest first"], ["name", "Name"], ["-size", "Largest first"], ["size", "Smallest first"],
];

export async function showBackups(session, place, { signal, setTitle, attempt }, vm) {
  setTitle(`Backups of ${session.nameOf(vm)}`);
  const [actions, facts, list] = [element("div", { class: "actions" }), element("p", {}), element("div", {})];
  const count = element("p", { class: "quiet", role: "status" });
  const filters = makeFilters(() => {
    pages = firstPage(vm, filters);
    attempt(list, load);
  });
  let pages = firstPage(vm, filters);
  let loads = 0;
  const load = async () => {
    loads += 1;
    const own = loads;
    const page = await readPage(session, pages, signal);
    if (own !== loads) return;
    pages.setNext(page.next);
    count.textContent = countText(page.data, pages, filters.isSet());
    replaceChildren(list, page.notice, backupTable(vm, page.data.backups, filters.isSet()), pageButtons(pages, (step) => {
      pages.turn(step);
      attempt(list, load);
    }));
  };
  const refresh = element("button", { type: "button", on: { click: () => attempt(list, load) } }, "Refresh");
  filters.form.append(refresh);
  replaceChildren(place, facts, actions, filters.form, count, list);
  session.operations.subscribe((status, before) => {
    if (before && isFinished(status) && idsIn(status.target_uri).vm === vm) attempt(list, load);
  }, signal);
  await Promise.all([load(), showVmFacts(session, facts, setTitle, vm, signal)]);
  await showCreate(session, actions, vm, signal);
}

async function showVmFacts(session, facts, setTitle, vm, signal) {
  const { data } = await session.api.read(pathOf(vm), signal);
  session.vmNames.set(vm, data.name);
  setTitle(`Backups of ${session.nameOf(vm)}`);
  const state = data.run_status ? `The VM is ${runState(data.run_status)}.` : "";
  replaceChildren(facts, `Id ${vm}. ${state} ${data.description ?? ""}`);
}

/** The button that makes a backup, where the VM manager can make one. */
async function showCreate(session, actions, vm, signal) {
  const [capabilities, permissions] = await Promise.all([
    session.readCapabilities(vm, signal), session.readPermissions(vm, undefined, signal),
  ]);
  if (capabilities && !capabilities.verbs.create.supported) return;
  const make = new ReasonedButton("Make a backup\u2026", "main", () => openCreate(session, vm, capabilities?.kinds ?? [], permissions));
  const decision = permissions?.get("create");
  make.disableFor(decision && !decision.allowed ? decision.reason : null);
  replaceChildren(actions, make.block);
}

/** The fields that narrow and order the list; `change` is called when one was changed. */
function makeFilters(change) {
  const name = element("input", { type: "search", autocomplete: "off", spellcheck: "false" });
  const tag = element("input", { type: "search", autocomplete: "off", spellcheck: "false" });
  const option = ([value, text]) => element("option", { value }, text);
  const state = element("select", {}, [["", "Any"], ...BACKUP_STATE_WORDS].map(option));
  const guarded = element("select", {}, [["", "Any"], ["true", "Protected"], ["false", "Not protected"]].map(option));
  const sort = element("select", {}, SORTS.map(option));
  let timer = 0;
  for (const input of [name, tag]) {
    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(change, TYPING_PAUSE);
    });
  }
  for (const select of [state, guarded, sort]) select.addEventListener("change", change);
  const form = element("form", { class: "filters", role: "search", on: { submit: (event) => event.preventDefault() } },
    labeledField("Name begins with", name), labeledField("Tag", tag), labeledField("State", state),
    labeledField("Protection", guarded), labeledField("Order", sort));
  const query = () => {
    const found = new URLSearchParams({ limit: PAGE, count: "true", sort: sort.value });
    const beginning = name.value.trim().replaceAll("*", "");
    if (beginning) found.set("name", `${beginning}*`);
    if (tag.value.trim()) found.set("tag", tag.value.trim());
    if (state.value) found.set("state", state.value);
    if (guarded.value) found.set("protected", guarded.value);
    return found;
  };
  return { form, query, isSet: () => Boolean(name.value.trim() || tag.value.trim() || state.value || guarded.value) };
}

const firstPage = (vm, filters) => new ListPages(`${pathOf(vm)}/backups?${filters.query()}`);

/** Reads the page. A list that is too long to be sorted or filtered is read in its own order. */
async function readPage(session, pages, signal) {
  try {
    return await session.api.read(pages.path, signal);
  } catch (error) {
    if (!(error instanceof Refused) || error.code !== "Unsupported") throw error;
    pages.restart(`${pages.path.split("?")[0]}?limit=${PAGE}`);
    const page = await session.api.read(pages.path, signal);
    return { ...page, notice: element("div", { class: "notice", role: "status" }, error.message) };
  }
}

function countText(data, pages, isFiltered) {
  const total = data.count ?? null;
  if (total !== null) return `${total.toLocaleString("en")} ${total === 1 ? "backup" : "backups"}${isFiltered ? " found" : ""}`;
  return `${data.backups.length} backups${pages.hasNext || pages.hasPrevious ? " on this page" : ""}`;
}

function backupTable(vm, backups, isFiltered) {
  if (backups.length === 0) return element("p", {}, isFiltered ? "No backup fits the filters." : "There are no backups of this VM.");
  const headings = ["Time", "Name", "Kind", "Size", "Tags", "Protected", "State"];
  const rows = backups.map((backup) => {
    const path = `#/vms/${encodeURIComponent(vm)}/${encodeURIComponent(idsIn(backup.uri).backup)}`;
    return [
      timeWithAge(backup.created),
      element("a", { href: path }, backup.name),
      backup.type ?? "",
      formatBytes(backup.size) ?? "unknown",
      backup.tags.map((tag) => [element("span", { class: "tag" }, tag), " "]),
      backup.protected ? "yes" : "no",
      backupState(backup.state),
    ];
  });
  return dataTable("Backups", headings, rows);
}
