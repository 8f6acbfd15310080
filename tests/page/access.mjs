// Who gets in, where credentials go, and what is shown to whom.

import assert from "node:assert/strict";
import { eventually } from "./browser.mjs";

/** Signs in, wrongly and rightly; the browser never asks for a password itself, and keeps none. */
export async function sign_in(browser) {
  const tab = await browser.open();
  const { page } = tab;
  await tab.countAuthentications();
  await tab.signIn("alice", "wrong");
  await tab.text("The credentials are wrong, or no longer valid.");
  assert.equal(tab.authentications, 0, "the browser does not ask");
  assert.equal(await page.evaluate(() => document.activeElement.type), "password", "the focus is where to correct it");
  // The control: it would ask for a request that leaves the credentials to it.
  await page.evaluate((url) => fetch(url).catch(() => {}), `${browser.base}/permissions`);
  assert.ok(tab.authentications > 0, "that the browser asks is noticed");
  await tab.stopCounting();

  await tab.signIn();
  await tab.heading("VMs");
  await tab.text("Connected");
  assert.ok(!page.url().includes("secret"), "no password in the address");
  const stored = () => page.evaluate(() => [document.cookie, localStorage.length, sessionStorage.length]);
  assert.deepEqual(await stored(), ["", 0, 0], "nothing is kept");
  for (const request of tab.requests) assert.ok(!/secret|alice/.test(request.url), `nothing in addresses: ${request.url}`);
  await page.reload();
  await tab.heading("Sign in");

  await page.getByLabel(/^Keep me/).check();
  await tab.signIn();
  await tab.heading("VMs");
  await page.reload();
  await tab.heading("VMs");
  await tab.button("Sign out").click();
  await tab.heading("Sign in");
  assert.deepEqual(await stored(), ["", 0, 0], "forgotten");
  await page.reload();
  await tab.heading("Sign in");
  tab.check();
}

/** The policy is enforced: markup is not made of text, and nothing inline runs. */
export async function policy(browser) {
  const tab = await browser.open();
  await tab.heading("Sign in");
  tab.check();
  const made = await tab.page.evaluate(() => {
    try {
      document.body.innerHTML = "<p>text</p>";
      return "made";
    } catch (error) {
      return error.name;
    }
  });
  assert.equal(made, "TypeError", "text does not become markup");
  await tab.page.evaluate(() => {
    const script = document.createElement("script");
    script.src = "https://elsewhere.invalid/script.js";
    document.body.append(script);
  }).catch(() => {});
  await tab.page.evaluate(() => fetch("https://elsewhere.invalid/").catch(() => {}));
  for (const directive of ["require-trusted-types-for", "connect-src"]) {
    await eventually(`${directive} is enforced`, async () => tab.violations.some((text) => text.startsWith(directive)));
  }
  assert.equal(await tab.page.evaluate(() => crossOriginIsolated || window.opener === null), true, "no opener");
}

/** A person who may restore and not delete is shown why. */
export async function no_right(browser, vm, backup) {
  const tab = await browser.open();
  await tab.signIn("carol");
  await tab.heading("VMs");
  await tab.openBackup(vm, backup);
  const remove = tab.button("Delete\u2026");
  assert.equal(await remove.getAttribute("aria-disabled"), "true", "disabled");
  const reason = await tab.page.locator(`#${await remove.getAttribute("aria-describedby")}`).textContent();
  assert.equal(reason, "No grant allows `delete` on this backup. Ask an operator for a grant with the action `delete` on this backup.");
  await remove.click({ force: true });
  await remove.focus();
  await tab.page.keyboard.press("Enter");
  assert.equal(await tab.page.getByRole("dialog").count(), 0, "nothing opens");
  assert.equal(await tab.button("Edit\u2026").getAttribute("aria-disabled"), "true", "neither may it be edited");
  assert.equal(await tab.button(`Restore ${vm}\u2026`).getAttribute("aria-disabled"), null, "it may be restored");
  await tab.audit("disabled buttons");
  tab.check();
}

/** Names that are markup are text. */
export async function hostile_names(browser, vm, backup) {
  const tab = await browser.open();
  await tab.signIn();
  await tab.heading("VMs");
  await tab.openBackup(vm, backup);
  await tab.text(`Description of ${backup}`);
  await tab.restore(vm);
  await tab.text("The VM was restored.");
  await tab.follow("Operations");
  await tab.heading("Operations");
  await tab.page.getByRole("cell", { name: vm }).first().waitFor();
  assert.equal(await tab.page.locator("img, script:not([type=module])").count(), 0, "no markup was made");
  tab.check();
}

/** At another address than the public one, changes are refused, and the page leads to the right one. */
export async function other_address(browser, vm, backup, address) {
  const tab = await browser.open();
  await tab.signIn();
  await tab.heading("VMs");
  await tab.openBackup(vm, backup);
  await tab.button(`Restore ${vm}\u2026`).click();
  const dialog = tab.page.getByRole("dialog");
  const link = dialog.getByRole("link", { name: address });
  await link.waitFor();
  assert.equal(await link.getAttribute("href"), address, "where changes are possible");
  await dialog.getByLabel(/^Type the name/).fill(vm);
  const submit = dialog.getByRole("button", { name: `Restore ${vm}`, exact: true });
  assert.equal(await submit.getAttribute("aria-disabled"), "true", "nothing is done without a plan");
  await tab.page.keyboard.press("Escape");
  tab.check();
}

/** A tab that is not looked at gives its stream back, and goes on where it was when it is looked at again. */
export async function hidden_tab(browser) {
  const tab = await browser.open();
  const { page } = tab;
  await page.clock.install();
  await tab.signIn();
  await tab.heading("VMs");
  const streams = () => tab.requests.filter((request) => request.headers.accept === "text/event-stream");
  await eventually("the stream is open", async () => streams().length === 1);
  let ended = 0;
  page.on("requestfailed", (request) => {
    if (request.headers().accept === "text/event-stream") ended += 1;
  });
  const setHidden = (isHidden) => page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
  }, isHidden);
  await setHidden(true);
  await page.clock.fastForward(61000);
  await eventually("the stream is closed", async () => ended === 1);
  assert.equal(streams().length, 1, "and not opened again");
  await setHidden(false);
  await eventually("the stream is open again", async () => streams().length === 2);
  tab.check();
}
