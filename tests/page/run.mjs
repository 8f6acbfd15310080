// Runs one scenario of the page: `node run.mjs SCENARIO URL [ARGUMENT...]`. Prints `done` when it came to its end.

import { Browser } from "./browser.mjs";
import * as access from "./access.mjs";
import * as changes from "./changes.mjs";
import * as looks from "./looks.mjs";

const SCENARIOS = { ...access, ...changes, ...looks };

const [name, base, ...rest] = process.argv.slice(2);
const scenario = SCENARIOS[name];
if (!scenario) throw new Error(`there is no scenario ${name}`);
const browser = await Browser.launch(base);
try {
  await scenario(browser, ...rest);
  console.log("done");
} finally {
  await browser.close();
}
process.exit(0);
