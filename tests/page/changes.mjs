// What is changed by way of the page: restored, cancelled, made, edited and deleted.

import assert from "node:assert/strict";
import { ask, eventually } from "./browser.mjs";

/** A restore to its end: refused until the name of the VM is typed, with the plan in view. */
export async function restore(browser, vm, backup, disk) {
  const tab = await browser.open();
  await tab.signIn();
  await tab.heading("VMs");
  await tab.openBackup(vm, backup);
  await tab.button(`Restore ${vm}\u2026`).click();
  const dialog = tab.page.getByRole("dialog");
  await dialog.getByText(disk).waitFor();
  const text = await dialog.textContent();
  for (const part of [`Restore ${vm}`, "(id ", backup, "Overwritten", "Lost", "since"]) {
    assert.ok(text.includes(part), `${part}: ${text}`);
  }
  const submit = dialog.getByRole("button", { name: `Restore ${vm}`, exact: true });
  assert.equal(await submit.getAttribute("aria-disabled"), "true", "not before the name is typed");
  await submit.click({ force: true });
  await dialog.getByLabel(/^Type the name/).fill(`${vm}x`);
  await submit.click({ force: true });
  assert.equal(await dialog.isVisible(), true, "not with another name");
  await dialog.getByLabel(/^Note/).fill("because of a test");
  await dialog.getByLabel(/^Type the name/).fill(vm);
  await submit.click();
  await tab.heading(`Restore of ${vm}`);
  await tab.text("The VM was restored.");
  const sent = tab.requests.find((request) => request.url.endsWith("/restore"));
  assert.match(sent.headers["if-plan"], /^"[0-9a-f]+"$/, "as it was planned");
  assert.ok(sent.headers["idempotency-key"].length >= 32, "once");
  tab.check();
}

/** The answer to a restore is lost: it is sent again with the same key, and is one operation. */
export async function lost_answer(browser, vm, backup) {
  const tab = await browser.open();
  await tab.signIn();
  await tab.heading("VMs");
  await tab.openBackup(vm, backup);
  const keys = [];
  await tab.page.route("**/restore", async (route) => {
    keys.push(route.request().headers()["idempotency-key"]);
    if (keys.length > 1) return route.continue();
    await route.fetch();
    return route.abort("connectionreset");
  });
  await tab.restore(vm);
  await tab.text("The VM was restored.");
  assert.equal(keys.length, 2, "sent again");
  assert.equal(keys[0], keys[1], "with the same key");
  assert.equal(await listedRestores(tab), 1, "one restore");
  tab.check();
}

/** How many restores the list of operations shows once it has been loaded. */
async function listedRestores(tab) {
  await tab.follow("Operations");
  await tab.heading("Operations");
  const restores = tab.page.getByRole("link", { name: "Restore", exact: true });
  // The heading is there before the rows, which arrive all at once.
  await restores.first().waitFor();
  return restores.count();
}

/** The gateway is killed in the middle of a restore and comes back. */
export async function killed(browser, vm, backup, moment) {
  const tab = await browser.open();
  await tab.signIn();
  await tab.heading("VMs");
  await tab.openBackup(vm, backup);
  await tab.restore(vm);
  const isInTheMiddle = moment === "in the middle";
  if (isInTheMiddle) await tab.page.getByRole("progressbar").waitFor();
  await ask("kill");
  await tab.text("Connection lost, trying again");
  if (isInTheMiddle) assert.equal(await tab.page.getByText("The VM was restored.").count(), 0, "nothing is claimed");
  await ask("start");
  await tab.text("Connected");
  await tab.text("The VM was restored.");
  const announced = tab.page.locator("#announcements");
  if (isInTheMiddle) {
    await eventually("the end is announced", async () => (await announced.textContent()).includes("The VM was restored."));
  }
  const restores = tab.requests.filter((request) => request.url.endsWith("/restore"));
  assert.equal(restores.length, 1, "asked for once");
  const resumed = tab.requests.filter((request) => request.headers["last-event-id"]);
  assert.ok(resumed.length > 0, "the stream was resumed");
  tab.check();
}

/** Two tabs: each is signed in by itself, both see what happens, and a plan that is no longer true restores nothing. */
export async function two_tabs(browser, vm, backup) {
  const one = await browser.open();
  await one.signIn();
  await one.heading("VMs");
  const two = await browser.open("#/operations");
  await two.heading("Sign in");
  await two.signIn();
  await two.heading("Operations");
  await two.text("The backup was made.");
  await one.openBackup(vm, backup);
  await one.restore(vm);
  await one.text("The VM was restored.");
  await two.text("The VM was restored.");

  await two.follow("VMs");
  await two.heading("VMs");
  await two.openBackup(vm, backup);
  await two.button(`Restore ${vm}\u2026`).click();
  const dialog = two.page.getByRole("dialog");
  await dialog.getByText("Overwritten").waitFor();
  await ask("change");
  await dialog.getByLabel(/^Type the name/).fill(vm);
  await dialog.getByRole("button", { name: `Restore ${vm}`, exact: true }).click();
  await dialog.getByText("The plan is stale").waitFor();
  await dialog.getByText("another.img").waitFor();
  assert.equal(await dialog.getByLabel(/^Type the name/).inputValue(), "", "to be confirmed again");
  await two.page.keyboard.press("Escape");
  await eventually("the dialog is closed", async () => (await two.page.getByRole("dialog").count()) === 0);
  assert.equal(await listedRestores(one), 1, "nothing more was restored");
  one.check();
  two.check();
}

/** A backup is made, edited, protected, and deleted. */
export async function edit(browser, vm) {
  const tab = await browser.open();
  const { page } = tab;
  await tab.signIn();
  await tab.heading("VMs");
  await tab.follow(vm);
  await tab.heading(`Backups of ${vm}`);
  await tab.button("Make a backup\u2026").click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Name", { exact: true }).fill("made here");
  await dialog.getByLabel("Description").fill("two\nlines");
  await dialog.getByRole("button", { name: "Make the backup" }).click();
  await tab.text("The backup was made.");
  await tab.follow("VMs");
  await tab.heading("VMs");
  await tab.openBackup(vm, "made here");

  await tab.button("Edit\u2026").click();
  await dialog.getByLabel("Name", { exact: true }).fill("renamed");
  await dialog.getByLabel("Tags, one a line").fill("first\nsecond, with a comma");
  await dialog.getByLabel("Protected against deletion").check();
  await dialog.getByRole("button", { name: "Save" }).click();
  await tab.heading(`Backup renamed of ${vm}`);
  await tab.text("second, with a comma");
  await tab.text("yes, it cannot be deleted");
  const remove = tab.button("Delete\u2026");
  assert.equal(await remove.getAttribute("aria-disabled"), "true", "protected");
  await tab.text("The backup is protected against deletion.");

  await tab.button("Edit\u2026").click();
  await dialog.getByLabel("Protected against deletion").uncheck();
  await dialog.getByRole("button", { name: "Save" }).click();
  await eventually("it may be deleted", async () => (await remove.getAttribute("aria-disabled")) === null);
  await remove.click();
  await dialog.getByLabel(/^Type the name/).fill("renamed");
  await dialog.getByRole("button", { name: "Delete renamed" }).click();
  await tab.text("The backup was deleted.");
  await tab.follow("VMs");
  await tab.heading("VMs");
  await tab.follow(vm);
  await tab.heading(`Backups of ${vm}`);
  await tab.text(/^\d+ backup/);
  assert.equal(await page.getByText("renamed").count(), 0, "gone");
  tab.check();
}

/** An operation is cancelled while it runs. */
export async function cancel(browser, vm, backup) {
  const tab = await browser.open();
  await tab.signIn();
  await tab.heading("VMs");
  await tab.openBackup(vm, backup);
  await tab.button(`Restore ${vm}\u2026`).click();
  const dialog = tab.page.getByRole("dialog");
  const typed = dialog.getByLabel(/^Type the name/);
  await typed.fill(vm);
  await eventually("it can be sent", async () => {
    return (await dialog.getByRole("button", { name: `Restore ${vm}`, exact: true }).getAttribute("aria-disabled")) === null;
  });
  await dialog.getByRole("button", { name: `Restore ${vm}`, exact: true }).click();
  await tab.heading(`Restore of ${vm}`);
  await tab.page.getByRole("progressbar").waitFor();
  await tab.audit("an operation that runs");
  await tab.button("Cancel this operation").click();
  await tab.text("cancelled");
  await eventually("it is over", async () => (await tab.button("Cancel this operation").count()) === 0);
  tab.check();
}

/** A restore by keyboard alone. */
export async function keyboard(browser, vm, backup) {
  const tab = await browser.open();
  const { page } = tab;
  const press = (key) => page.keyboard.press(key);
  const focused = () => page.evaluate(() => {
    const { activeElement } = document;
    const label = activeElement.labels?.[0]?.textContent ?? activeElement.textContent;
    return `${activeElement.tagName.toLowerCase()} ${label.trim()}`;
  });
  const tabTo = async (wanted) => {
    for (let count = 0; count < 60; count += 1) {
      if ((await focused()).startsWith(wanted)) return;
      await press("Tab");
    }
    assert.fail(`${wanted} cannot be reached from the keyboard; the focus is at ${await focused()}`);
  };
  await tab.heading("Sign in");
  await tabTo("input User name");
  await page.keyboard.type("alice");
  await tabTo("input Password");
  await page.keyboard.type("secret");
  await press("Enter");
  await tab.heading("VMs");
  assert.equal(await focused(), "h1 VMs", "reading begins at the heading");
  await tab.text(vm);
  await tabTo(`a ${vm}`);
  await press("Enter");
  await tab.heading(`Backups of ${vm}`);
  await tab.text(backup);
  await tabTo(`a ${backup}`);
  await press("Enter");
  await tab.heading(`Backup ${backup} of ${vm}`);
  await tab.button(`Restore ${vm}\u2026`).waitFor();
  await tabTo(`button Restore ${vm}`);
  await press("Enter");
  await page.getByRole("dialog").getByText("Overwritten").waitFor();
  assert.match(await focused(), /^input Type the name/, "the dialog begins where something is to be typed");
  // Behind a modal dialog nothing can be reached, and Escape leads back to where it was opened.
  await press("Escape");
  assert.equal(await focused(), `button Restore ${vm}\u2026`, "back at the button");
  await press("Enter");
  await page.getByRole("dialog").getByText("Overwritten").waitFor();
  await page.keyboard.type(vm);
  await press("Enter");
  await tab.heading(`Restore of ${vm}`);
  await tab.text("The VM was restored.");
  tab.check();
}
