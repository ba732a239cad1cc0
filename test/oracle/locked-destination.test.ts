import { expect, test } from "bun:test";
import { chmodSync, existsSync, readdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { formatKeyText } from "../../src/format/envelope.ts";
import { s3Table } from "../servers/s3-backends.ts";
import { forRgw } from "../servers/s3-servers.ts";
import { eventually } from "../support/eventually.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { configPathIn, runBakelite } from "./daemon-process.ts";
import { countCommits } from "./upkeep-content.ts";

const DAEMON = fileURLToPath(new URL("upkeep-daemon.ts", import.meta.url));
const WRITER = fileURLToPath(new URL("upkeep-writer.ts", import.meta.url));
const RUN_MS = 12_000;

await forRgw(({ rgw, newPlace }) => {
  test("compaction, retention and reencrypt over a directory, a bucket with object lock and a mirror leave each of them able to restore", async () => {
    await using place = await newPlace();
    await using directory = await temporaryDirectory("locked");
    const bucket = `locked-${crypto.randomUUID()}`;
    await place.requests.createBucket(bucket, { lock: { mode: "GOVERNANCE", days: 1 } });
    const path = directory.file("app.db");
    const configPath = configPathIn(directory.path);
    const s3 = Object.entries(s3Table({ account: rgw.account, bucket, prefix: "p" }));
    const writeConfig = (keyFile: string | null) =>
      writeFileSync(
        configPath,
        `[defaults]
debounce = "10ms"
mirror_interval = "300ms"
snapshot_interval = "3s"
compaction_levels = ["1s", "3s"]
compaction_keep = ["2s", "4s"]
compaction_keep_recent = 4
retention = "5s"
${keyFile === null ? "" : `[defaults.encryption]\nkey_file = "${keyFile}"\n`}
[[database]]
name = "app"
path = "${path}"

[[database.backends]]
type = "file"
path = "${directory.file("store")}"

[[database.backends]]
${s3.map(([key, value]) => `${key} = ${JSON.stringify(value)}`).join("\n")}

[[database.backends]]
type = "file"
path = "${directory.file("mirror")}"
async = true
`,
      );
    writeConfig(null);
    const writer = Bun.spawn([process.execPath, WRITER, path], { stdout: "pipe", stderr: "inherit", stdin: "ignore" });
    const commits = new Response(writer.stdout).text();
    const daemon = Bun.spawn([process.execPath, DAEMON, configPath], {
      stdout: "pipe",
      stderr: "inherit",
      stdin: "ignore",
    });
    const log = new Response(daemon.stdout).text();
    try {
      await Bun.sleep(RUN_MS);
      writer.kill("SIGTERM");
      await writer.exited;
      // What was committed last has come to the mirror, too.
      const index = async () =>
        JSON.parse((await run("list", "--db", "app", "--json")).stdout).newest_restore_point.index;
      const newest = await index();
      await eventually(async () => (await restoredAt(3, "mirror.db")) === (await restoredAt(1, "store.db")), {
        what: `the mirror to hold state ${newest}`,
        deadlineMs: 20_000,
      });
    } finally {
      writer.kill("SIGKILL");
      daemon.kill("SIGTERM");
    }
    expect(await daemon.exited).toBe(0);
    const lines = (await log)
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.filter(({ level }) => level === "error")).toEqual([]);
    const count = (await commits).trim().split("\n").length;

    // The policy was carried out, and the bucket kept every version.
    expect(lines.some(({ message }) => message === "deleted what the policy gives up")).toBe(true);
    const versions = await place.requests.listVersions(bucket, "p/app/");
    const kept = versions.filter((version) => !version.isDeleteMarker).length;
    expect(kept).toBeGreaterThan(readdirSync(directory.file("store"), { recursive: true }).length);
    for (const destination of [1, 2, 3]) expect(await restoredAt(destination, `plain-${destination}.db`)).toBe(count);

    const keyFile = directory.file("key.txt");
    writeFileSync(keyFile, `${formatKeyText(new Uint8Array(32).fill(7))}\n`);
    chmodSync(keyFile, 0o600);
    writeConfig(keyFile);
    const rewritten = await run("reencrypt", "--db", "app");
    // All is sealed, and what the bucket does not let go of is named.
    expect(rewritten.status).toBe(1);
    expect(rewritten.stdout).toMatch(/(\d+) of \1 objects rewritten, .*; 1 problem$/m);
    expect(rewritten.stdout).toContain(
      `not-deleted  s3://${bucket}/p: the destination keeps versions of what is deleted`,
    );
    const left = (folder: string) =>
      readdirSync(directory.file(folder), { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".p"));
    expect([...left("store"), ...left("mirror")]).toEqual([]);
    for (const destination of [1, 2, 3]) expect(await restoredAt(destination, `sealed-${destination}.db`)).toBe(count);
    expect(await run("verify", "--db", "app")).toMatchObject({ status: 0 });
    // No version was ever named in a deletion, so all that was stored in plaintext is there until its lock ends.
    const after = await place.requests.listVersions(bucket, "p/app/");
    expect(after.filter((version) => !version.isDeleteMarker).length).toBeGreaterThan(kept);

    async function run(...argv: readonly string[]) {
      return await runBakelite("source", [...argv, "--config", configPath]);
    }

    /** How many commits a restore from one destination alone has; null: it fails. */
    async function restoredAt(destination: number, name: string): Promise<number | null> {
      const output = directory.file(name);
      const restored = await run(
        "restore",
        "--db",
        "app",
        "--force",
        "--output",
        output,
        "--destination",
        String(destination),
      );
      return restored.status === 0 && existsSync(output) ? countCommits(output) : null;
    }
  }, 110_000);
});
