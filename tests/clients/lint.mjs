// Checks an OpenAPI document with the recommended rules of redocly, prints what they find, and fails if that is anything.
import { createConfig, formatProblems, lint } from "@redocly/openapi-core";

const config = await createConfig({ extends: ["recommended"] });
const problems = await lint({ ref: process.argv[2], config });
const totals = { errors: problems.length, warnings: 0, ignored: 0 };
formatProblems(problems, { totals, version: "", format: "stylish" });
process.exitCode = problems.length === 0 ? 0 : 1;
