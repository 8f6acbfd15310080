// How the page looks and how long it takes: narrow and wide, light and dark, with few and with many backups.

import assert from "node:assert/strict";
import { join } from "node:path";
import { eventually } from "./browser.mjs";

/** Every view and the dialogs, in every size and color: nothing is wider than the window, and axe finds nothing serious. */
export async function layout(browser, vm, backup) {
  const tab = await browser.open();
  const { page } = tab;
  const look = async (where) => {
    for (const width of [360, 1600]) {
      for (const colorScheme of ["light", "dark"]) {
        await page.setViewportSize({ width, height: 740 });
        await page.emulateMedia({ colorScheme });
        const name = `${where}, ${width} px, ${colorScheme}`;
        const [wide, inner] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
        assert.ok(wide <= inner, `${name}: ${wide} px wide`);
        await tab.audit(name);
      }
    }
  };
  await tab.heading("Sign in");
  await look("signing in");
  await tab.signIn();
  await tab.heading("VMs");
  await tab.text(vm);
  await look("VMs");
  await tab.follow(vm);
  await tab.heading(`Backups of ${vm}`);
  await tab.text(backup);
  await look("backups");
  await tab.follow(backup);
  await tab.heading(`Backup ${backup} of ${vm}`);
  await tab.button("Delete\u2026").waitFor();
  await look("a backup");
  const dialog = page.getByRole("dialog");
  for (const name of [`Restore ${vm}\u2026`, "Edit\u2026", "Delete\u2026"]) {
    await tab.button(name).click();
    await dialog.waitFor();
    await eventually("there is a plan", async () => (await dialog.getByText("Looking at what").count()) === 0);
    await look(`the dialog ${name}`);
    const [dialogWidth, inside] = await dialog.evaluate((element) => [element.scrollWidth, element.clientWidth]);
    assert.ok(dialogWidth <= inside, `${name}: ${dialogWidth} px in ${inside}`);
    await page.keyboard.press("Escape");
  }
  await tab.restore(vm);
  await tab.text("The VM was restored.");
  await look("an operation");
  await tab.follow("Operations");
  await tab.heading("Operations");
  await tab.text("The VM was restored.");
  await look("operations");
  tab.check();
}

/** The list of 10,000 backups is shown about as quickly as one of 100, in pages. */
export async function many(browser, few, lots) {
  const tab = await browser.open();
  const { page } = tab;
  await tab.signIn();
  await tab.heading("VMs");
  const rows = () => page.locator("tbody tr").count();
  const show = async (vm, count) => {
    await page.evaluate(() => {
      location.hash = "#/operations";
    });
    await tab.heading("Operations");
    const begun = performance.now();
    await page.evaluate((id) => {
      location.hash = `#/vms/${id}`;
    }, vm);
    await page.getByText(count, { exact: true }).waitFor();
    await page.locator("tbody tr").nth(99).waitFor();
    return performance.now() - begun;
  };
  const median = (times) => [...times].sort((one, other) => one - other)[Math.floor(times.length / 2)];
  const times = { few: [], lots: [] };
  for (let round = 0; round < 7; round += 1) {
    times.few.push(await show(few, "100 backups"));
    times.lots.push(await show(lots, "10,000 backups"));
  }
  const [quick, slow] = [median(times.few), median(times.lots)];
  console.log(`100 backups: ${quick.toFixed(0)} ms, 10,000 backups: ${slow.toFixed(0)} ms`);
  assert.ok(slow <= 4 * quick + 50, `not much slower: ${slow} ms for 10,000, ${quick} ms for 100`);
  assert.equal(await rows(), 100, "one page");
  assert.ok((await page.locator("*").count()) < 3000, "no more than that is kept");
  const first = await page.locator("tbody tr a").first().textContent();
  await tab.button("Next page").click();
  await tab.text("Page 2");
  const second = await page.locator("tbody tr a").first().textContent();
  assert.notEqual(second, first, "other backups");
  await tab.button("Previous page").click();
  await tab.text("Page 1");
  await eventually("the first page again", async () => (await page.locator("tbody tr a").first().textContent()) === first);
  await page.getByLabel("Name begins with").fill(first);
  await tab.text(/backups? found/);
  await eventually("it is found", async () => (await rows()) < 100 && (await page.getByRole("link", { name: first, exact: true }).count()) === 1);
  tab.check();
}

/** The pictures of the README. */
export async function screenshots(browser, vm, backup, folder) {
  const tab = await browser.open();
  const { page } = tab;
  await page.setViewportSize({ width: 1000, height: 640 });
  await tab.signIn();
  await tab.heading("VMs");
  await tab.openBackup(vm, backup);
  await tab.button(`Restore ${vm}\u2026`).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByText("Overwritten").waitFor();
  await dialog.getByLabel(/^Note/).fill("The upgrade broke the database");
  await dialog.getByLabel(/^Type the name/).fill(vm);
  await page.screenshot({ path: join(folder, "page-restore.png") });
  await dialog.getByRole("button", { name: `Restore ${vm}`, exact: true }).click();
  await tab.text("The VM was restored.");
  await tab.follow("VMs");
  await tab.follow(vm);
  await tab.text(backup);
  await page.emulateMedia({ colorScheme: "dark" });
  await page.setViewportSize({ width: 1000, height: 420 });
  await page.screenshot({ path: join(folder, "page-backups.png") });
  tab.check();
}
