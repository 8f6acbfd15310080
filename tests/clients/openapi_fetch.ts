// Drives the demo with openapi-fetch and the types that openapi-typescript generates.
//
// Usage: openapi_fetch.js BASE_URL LATER_URL, compiled beside the generated `schema.d.ts`. LATER_URL answers every request with a Status
// that has words of a later version.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Status = components["schemas"]["Status"];

const vm = "33333";
const header = { "X-Cloud-Client-Specification-Version": "0.1" };
const of456 = { path: { vm, b: "456" }, header };

function connect(baseUrl: string) {
  const authorization = `Basic ${Buffer.from("demo:demo").toString("base64")}`;
  return createClient<paths>({ baseUrl, headers: { Authorization: authorization } });
}

type Client = ReturnType<typeof connect>;

/** Reads the Status of an accepted change until it is over. */
async function follow(client: Client, accepted: Status | undefined): Promise<Status> {
  let status = accepted;
  while (status !== undefined && status.progress < 100) {
    const params = { query: { seq: status.seq }, header: { Prefer: "wait=10" } };
    const { data } = await client.GET("/statuses", { params });
    status = data !== undefined && typeof data === "object" && "seq" in data ? data : undefined;
  }
  assert(status, "a Status");
  return status;
}

async function main(url: string, laterUrl: string) {
  const client = connect(url);
  const vms = await client.GET("/vms", { params: { header } });
  assert(vms.data?.complete && vms.data.vms.some((one) => one.id === vm));
  const list = await client.GET("/vms/{vm}/backups", { params: { path: { vm }, header } });
  const links = list.data?.backups.map((backup) => backup.uri) ?? [];
  assert(links.some((link) => link.endsWith("/vms/33333/backups/456")), links.join());

  const read = async () => (await client.GET("/vms/{vm}/backups/{b}", { params: of456 })).data;
  const update = async (body: components["schemas"]["BackupPatch"]) => {
    const { data } = await client.PUT("/vms/{vm}/backups/{b}", { params: of456, body });
    assert.equal((await follow(client, data)).state, "SUCCESS");
  };
  assert.equal((await read())?.state, "AVAILABLE");
  await update({ tags: ["foo", "bar"], description: "changed" });
  assert.equal((await read())?.description, "changed");
  await update({ description: null });
  const cleared = await read();
  assert.deepEqual(cleared?.tags, ["foo", "bar"]);
  assert.equal(cleared?.description, undefined);

  const body = { name: "of-openapi-fetch" };
  const made = await client.POST("/vms/{vm}/backups", { params: { path: { vm }, header }, body });
  assert.equal((await follow(client, made.data)).status, 201);

  const pairs = { note: "of openapi-fetch" };
  const restored = await client.POST("/vms/{vm}/backups/{b}/restore", { params: of456, body: pairs });
  assert.equal((await follow(client, restored.data)).message, "The VM was restored.");

  const absent = await client.GET("/vms/{vm}/backups/{b}", { params: { path: { vm, b: "absent" }, header } });
  assert.equal(absent.response.status, 404);
  assert.equal(absent.error?.message[0]?.code, "NoSuchBackup");

  const { data } = await connect(laterUrl).GET("/statuses", { params: { query: { seq: "1" } } });
  assert(data !== undefined && typeof data === "object" && "state" in data);
  assert.equal(data.state, "PAUSED");
  assert.equal(data.op, "clone-Backup");
  console.log("done");
}

const [url, laterUrl] = process.argv.slice(2);
assert(url !== undefined && laterUrl !== undefined, "two URLs");
await main(url, laterUrl);
