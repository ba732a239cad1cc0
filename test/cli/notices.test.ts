import { expect, test } from "bun:test";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { runCli } from "../../src/cli/run.ts";
import { type StubRequest, startStub } from "../storage-s3/stub.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { agedReplica, filesBelow, POLICY } from "./aged-replica.ts";
import { fakeHost } from "./fake-host.ts";

/** A bucket `b` whose objects are the files below a folder, with credentials that may list and read. */
function readOnlyBucket(folder: string, { method, path, query, headers }: StubRequest): Response {
  if (method === "DELETE" || query.has("delete"))
    return new Response("<Error><Code>AccessDenied</Code><Message>no</Message></Error>", { status: 403 });
  if (query.has("list-type")) {
    const prefix = query.get("prefix") ?? "";
    const after = query.get("start-after") ?? "";
    const keys = filesBelow(folder).map((file) => file.slice(folder.length + 1));
    const listed = keys
      .filter((key) => key.startsWith(prefix) && key > after)
      .map((key) => {
        const { size, mtime } = statSync(join(folder, key));
        return `<Contents><Key>${key}</Key><LastModified>${mtime.toISOString()}</LastModified><Size>${size}</Size></Contents>`;
      });
    return new Response(`<ListBucketResult><IsTruncated>false</IsTruncated>${listed.join("")}</ListBucketResult>`);
  }
  const key = decodeURIComponent(path.replace(/^\/b\//, ""));
  const file = filesBelow(folder).find((found) => found === join(folder, key));
  if (file === undefined) return new Response(null, { status: 404 });
  const bytes = readFileSync(file);
  const shared = { etag: '"e"', "last-modified": statSync(file).mtime.toUTCString() };
  if (method === "HEAD") return new Response(null, { headers: { ...shared, "content-length": `${bytes.length}` } });
  const [, first = "", last = ""] = /^bytes=(\d*)-(\d*)$/.exec(headers.get("range") ?? "") ?? [];
  const start = first === "" ? Math.max(0, bytes.length - Number(last)) : Number(first);
  const end = first === "" || last === "" ? bytes.length : Math.min(bytes.length, Number(last) + 1);
  return new Response(bytes.subarray(start, end), {
    status: 206,
    headers: { ...shared, "content-range": `bytes ${start}-${end - 1}/${bytes.length}` },
  });
}

test("what a bucket does not allow is noted once by a command that deletes, with what to do about it", async () => {
  await using directory = await temporaryDirectory("cli-notices");
  const replica = await agedReplica(directory, "scene", { states: 60, spacingMs: 60_000, fullEvery: 20 });
  const folder = replica.stores[0] ?? "";
  await using stub = startStub((request) => readOnlyBucket(folder, request));
  const configPath = directory.file("bucket.toml");
  writeFileSync(
    configPath,
    `[[database]]\nname = "app"\npath = "${replica.databasePath}"\nretention = "10m"\n${POLICY}
[[database.backends]]\ntype = "s3"\nbucket = "b"\nendpoint = "${stub.endpoint}"\nregion = "us-east-1"
path_style = true\naccess_key_id = "K"\nsecret_access_key = "secret"\nretries = 0\n`,
    { mode: 0o600 },
  );
  const host = fakeHost({ clock: { nowMs: () => replica.newestMs + 7 * 86_400_000, monotonicMs: () => 0 } });
  expect(await runCli(["prune", "--config", configPath], host)).toBe(1);
  const told = host.stderr.text;
  expect(told).toContain(
    "note: app: the credentials may not delete, so nothing is ever removed there\n  hint: allow s3:DeleteObject",
  );
  expect(told.split("note: ").length).toBe(2);
});
