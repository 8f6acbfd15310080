// Chromium for the tests of the page: tabs that are watched for everything that must not happen, and what people do in them.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { join } from "node:path";

// `.ci/run` installs the libraries there; scripts below `tests` have no modules of their own.
const require = createRequire(join(process.env.PAGE_MODULES, "none.js"));
const { chromium } = require("playwright-core");
const axe = require.resolve("axe-core/axe.min.js");

/** Longest wait for something that must happen. */
export const PATIENCE = 60000;

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Says something to the test that drives this script, and waits until it has acted on it. */
export async function ask(what) {
  console.log(`ask ${what}`);
  const { value } = await lines.next();
  return value;
}

/** A browser, and the tabs of one person in it. */
export class Browser {
  static async launch(base, options = {}) {
    const browser = await chromium.launch({
      executablePath: process.env.PAGE_CHROMIUM ?? "/usr/bin/chromium",
      args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
    });
    const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
    context.setDefaultTimeout(PATIENCE);
    return new Browser(browser, context, base);
  }

  constructor(browser, context, base) {
    Object.assign(this, { browser, context, base });
  }

  /** Opens the page in a tab that is watched. */
  async open(hash = "") {
    const page = await this.context.newPage();
    const watched = new Tab(page, this.base);
    await watched.watch();
    await page.goto(`${this.base}/ui/${hash}`);
    return watched;
  }

  async close() {
    await this.browser.close();
  }
}

/** A tab with everything in it that must not happen. */
export class Tab {
  constructor(page, base) {
    Object.assign(this, { page, base, wrong: [], violations: [], requests: [], authentications: 0 });
  }

  async watch() {
    const { page } = this;
    await page.exposeBinding("reportViolation", (_source, text) => this.violations.push(text));
    await page.addInitScript(() => {
      addEventListener("securitypolicyviolation", (event) => {
        window.reportViolation(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
      });
    });
    page.on("dialog", (dialog) => {
      this.wrong.push(`a dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
    page.on("pageerror", (error) => this.wrong.push(`an error: ${error.message}`));
    page.on("console", (message) => {
      if (message.type() !== "error") return;
      // Refusals and lost connections are logged by the browser itself.
      if (!/^Failed to load resource/.test(message.text())) this.wrong.push(`the console: ${message.text()}`);
    });
    page.on("request", (request) => this.requests.push({ url: request.url(), headers: request.headers(), method: request.method() }));
    // Reported where the browser would otherwise ask the person for a password itself.
    const session = await page.context().newCDPSession(page);
    session.on("Fetch.requestPaused", ({ requestId }) => session.send("Fetch.continueRequest", { requestId }).catch(() => {}));
    session.on("Fetch.authRequired", ({ requestId }) => {
      this.authentications += 1;
      session.send("Fetch.continueWithAuth", { requestId, authChallengeResponse: { response: "CancelAuth" } }).catch(() => {});
    });
    this.session = session;
  }

  /** Counts the times that the browser would ask for a password from now on. */
  async countAuthentications() {
    await this.session.send("Fetch.enable", { handleAuthRequests: true });
  }

  async stopCounting() {
    await this.session.send("Fetch.disable");
  }

  async signIn(user = "alice", password = "secret") {
    await this.page.getByLabel("User name", { exact: true }).fill(user);
    await this.page.getByLabel("Password", { exact: true }).fill(password);
    await this.page.getByRole("button", { name: "Sign in" }).click();
  }

  /** Waits until the heading of the view says this. */
  async heading(text) {
    await this.page.getByRole("heading", { level: 1, name: text }).waitFor();
  }

  async text(text) {
    await this.page.getByText(text).first().waitFor();
  }

  async follow(name) {
    await this.page.getByRole("link", { name, exact: true }).first().click();
  }

  button(name) {
    return this.page.getByRole("button", { name, exact: true });
  }

  /** From the list of VMs to the backup. */
  async openBackup(vm, backup) {
    await this.follow(vm);
    await this.heading(`Backups of ${vm}`);
    await this.follow(backup);
    await this.heading(`Backup ${backup} of ${vm}`);
  }

  /** From the backup to the end of a restore. */
  async restore(vm, note = "") {
    await this.button(`Restore ${vm}\u2026`).click();
    const dialog = this.page.getByRole("dialog");
    await dialog.getByText("Overwritten").waitFor();
    if (note) await dialog.getByLabel(/^Note/).fill(note);
    await dialog.getByLabel(/^Type the name/).fill(vm);
    await dialog.getByRole("button", { name: `Restore ${vm}`, exact: true }).click();
    await this.heading(`Restore of ${vm}`);
  }

  /** What axe finds that is serious. */
  async audit(where) {
    // By way of the debugger: the policy of the page allows no scripts of others.
    const isThere = await this.page.evaluate(() => Boolean(window.axe));
    if (!isThere) await this.session.send("Runtime.evaluate", { expression: readAxe() });
    const found = await this.page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    const serious = found.violations.filter((one) => ["serious", "critical"].includes(one.impact));
    const described = serious.map((one) => `${one.id}: ${one.nodes.map((node) => `${node.target} ${node.failureSummary}`).join("; ")}`);
    assert.deepEqual(described, [], `${where}: axe`);
    assert.ok(found.passes.length > 5, `${where}: axe has looked`);
  }

  /** Fails if something happened that must not. */
  check() {
    assert.deepEqual(this.violations, [], "violations of the policy");
    assert.deepEqual(this.wrong, [], "errors and dialogs");
    const elsewhere = this.requests.map((request) => request.url).filter((url) => !url.startsWith(`${this.base}/`));
    assert.deepEqual(elsewhere, [], "requests to elsewhere");
  }
}

let axeSource = "";

function readAxe() {
  axeSource ||= require("node:fs").readFileSync(axe, "utf8");
  return axeSource;
}

/** Waits until the condition holds. */
export async function eventually(what, holds) {
  const until = Date.now() + PATIENCE;
  while (!(await holds())) {
    assert.ok(Date.now() < until, `not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
