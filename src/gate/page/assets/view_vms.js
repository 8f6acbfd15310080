// The VMs that the person may read: their state, and when they were last backed up.

import { BASE, idsIn } from "./api.js";
import { ListPages } from "./changes.js";
import { dataTable, element, labeledField, pageButtons, replaceChildren } from "./elements.js";
import { isFinished, runState, timeWithAge } from "./words.js";

const PAGE = 100;
const TYPING_PAUSE = 250;

export async function showVms(session, place, { signal, setTitle, attempt }) {
  setTitle("VMs");
  const search = element("input", { type: "search", autocomplete: "off", spellcheck: "false" });
  const list = element("div", { "aria-live": "off" });
  const count = element("p", { class: "quiet", role: "status" });
  const firstPage = () => {
    const text = search.value.trim().replaceAll("*", "");
    const query = new URLSearchParams({ limit: PAGE });
    if (text) query.set("name", `${text}*`);
    return new ListPages(`vms?${query}`);
  };
  let pages = firstPage();
  let loads = 0;
  const load = async () => {
    loads += 1;
    const own = loads;
    const page = await session.api.read(pages.path, signal);
    // A search that was overtaken by another one is not shown.
    if (own !== loads) return;
    pages.setNext(page.next);
    rememberVms(session, page.data.vms);
    const shown = page.data.vms.length;
    count.textContent = `${shown} ${shown === 1 ? "VM" : "VMs"}${pages.hasNext || pages.hasPrevious ? " on this page" : ""}`;
    replaceChildren(list, vmTable(page.data, search.value.trim()), pageButtons(pages, (step) => {
      pages.turn(step);
      attempt(list, load);
    }));
  };
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      pages = firstPage();
      attempt(list, load);
    }, TYPING_PAUSE);
  });
  const refresh = element("button", { type: "button", on: { click: () => attempt(list, load) } }, "Refresh");
  const form = element("form", { class: "filters", role: "search", on: { submit: (event) => event.preventDefault() } },
    labeledField("Search by the beginning of the name", search), refresh);
  replaceChildren(place, form, count, list);
  session.operations.subscribe((status, before) => {
    const changesList = status.op === "back_up" || status.op === "delete-Backup";
    if (before && changesList && isFinished(status)) attempt(list, load);
  }, signal);
  await load();
}

function rememberVms(session, vms) {
  for (const vm of vms) {
    session.vmNames.set(vm.id, vm.name);
    session.publicAddress ??= publicAddress(vm);
  }
}

/** Where the page is at the public address of the gateway; `null` where it is that address already. */
function publicAddress(vm) {
  if (!URL.canParse(vm.uri)) return null;
  const { origin, pathname } = new URL(vm.uri);
  return origin === BASE.origin ? null : `${origin}${pathname.replace(/vms\/[^/]*$/, "")}ui/`;
}

function vmTable(data, searched) {
  const gap = data.complete ? null : element("div", { class: "notice", role: "status" }, data.message);
  if (data.vms.length === 0) {
    return [gap, element("p", {}, searched ? "No VM of that name. " : "No VMs. ",
      searched && element("a", { href: `#/vms/${encodeURIComponent(searched)}` }, `Open the VM with the id ${searched}`))];
  }
  const hasState = data.vms.some((vm) => vm.state);
  const hasBackend = data.vms.some((vm) => vm.backend);
  const headings = ["Name", "Id", hasState && "State", "Last backup", hasBackend && "Backend"].filter(Boolean);
  const rows = data.vms.map((vm) => [
    element("a", { href: `#/vms/${encodeURIComponent(vm.id)}` }, vm.name || vm.id),
    vm.id,
    ...(hasState ? [runState(vm.state) || "unknown"] : []),
    lastBackup(vm),
    ...(hasBackend ? [vm.backend ?? ""] : []),
  ]);
  return [gap, dataTable("VMs", headings, rows)];
}

function lastBackup(vm) {
  if (!vm.last_backup) return element("span", { class: "quiet" }, "none known");
  const { backup } = idsIn(vm.last_backup.uri);
  const path = `#/vms/${encodeURIComponent(vm.id)}/${encodeURIComponent(backup)}`;
  return element("a", { href: path }, timeWithAge(vm.last_backup.created));
}
