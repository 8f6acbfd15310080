// What a plan says, in words: what is overwritten, lost and left, and everything that is in the way.

import { descriptionList, element } from "./elements.js";
import { formatAge, formatBytes, formatDuration, formatTime, runState, timeWithAge } from "./words.js";

const list = (items) => element("ul", {}, items.map((item) => element("li", {}, item)));

/** What is not known beforehand, by the parts of a plan. */
const UNKNOWN = {
  overwrites: "which disks are overwritten",
  loses: "what is lost",
  leaves: "which disks stay as they are",
  after: "whether the VM runs afterwards",
  needs: "how much room is needed",
  refused: "whether the VM manager will refuse it",
};

/** The plan beside what it is about; `null` stands for a server that makes none. */
export function planFacts(plan, { vm, vmName, backup }, op) {
  const subject = [
    ["VM", `${vmName} (id ${vm})`],
    ["Backup", [backup.name, ", made ", timeWithAge(backup.created)]],
  ];
  if (!plan) {
    const text = op === "restore-Backup"
      ? "This server does not say what a restore overwrites. Everything that was written to the VM since the backup may be lost."
      : "The backup will be gone for good.";
    return [descriptionList(subject), element("p", { class: "notice" }, text)];
  }
  return [
    problems(plan),
    descriptionList([...subject, ...effects(plan, op)]),
    plan.unknown.length > 0 && element("p", { class: "quiet" },
      `This VM manager does not say beforehand ${plan.unknown.map((part) => UNKNOWN[part] ?? part).join(", ")}.`),
  ];
}

/** What would refuse it now, and what to look at before. */
function problems(plan) {
  const refused = plan.refused.length > 0 && element("div", { class: "notice error", role: "alert" },
    element("p", {}, "This would be refused now:"), list(plan.refused.map((refusal) => refusal.text)));
  const warnings = plan.warnings.length > 0 && element("div", { class: "notice" }, list(plan.warnings));
  return [refused, warnings];
}

function effects(plan, op) {
  const disks = plan.overwrites.map((disk) => (disk.size === undefined ? disk.disk : `${disk.disk} (${formatBytes(disk.size)})`));
  const lost = plan.loses.backups.map((backup) => `${backup.name}, made ${formatTime(backup.created)}`);
  const since = plan.loses.since && `Everything that was written to the VM since ${formatTime(plan.loses.since)} (${formatAge(plan.loses.since)})`;
  const needs = plan.needs?.bytes === undefined ? null
    : `${formatBytes(plan.needs.bytes)}${plan.needs.free === undefined ? "" : `, free: ${formatBytes(plan.needs.free)}`}`;
  const basis = { history: "from earlier ones", size: "from the size" };
  const duration = plan.duration && `about ${formatDuration(plan.duration.seconds)} (${basis[plan.duration.basis] ?? plan.duration.basis})`;
  return [
    ["Runs now", plan.vm.state && runState(plan.vm.state)],
    ["Overwritten", disks.length > 0 && list(disks)],
    ["Lost", (since || lost.length > 0) && list([since, ...lost.map((text) => `The backup ${text}`)].filter(Boolean))],
    ["Stays as it is", plan.leaves.length > 0 && list(plan.leaves)],
    ["Afterwards", op === "restore-Backup" && plan.after && `the VM is ${runState(plan.after)}`],
    ["Room needed", needs],
    ["Duration", duration],
  ].map(([name, value]) => [name, value || null]);
}
