import { Database } from "bun:sqlite";
import { afterAll, expect, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { FileBackend } from "../../src/storage/file.ts";
import { type ProgramResult, runBakelite, type Settings, startDaemon } from "../oracle/daemon-process.ts";
import { GcsScene, openGcs } from "../servers/gcs/places.ts";
import { findProgram, runProgram } from "../servers/programs.ts";
import { openS3, s3Table } from "../servers/s3-backends.ts";
import { forRgw } from "../servers/s3-servers.ts";
import { openTable, startSshd } from "../servers/sshd.ts";
import { eventually } from "../support/eventually.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { copyObjects } from "./copy-objects.ts";

const TEST_MS = 60_000;
const directory = await temporaryDirectory("by-hand");
const scene = await GcsScene.start();
const sshd = await startSshd();
afterAll(async () => {
  for (const one of [scene, sshd, directory]) await one[Symbol.asyncDispose]();
});

const databasePath = directory.file("app.db");
const local = directory.file("replica");
const liveBucket = scene.newBucket();
const liveTable = scene.table(liveBucket, { prefix: "live" });
let configCount = 0;
const rowCount = await backUp();

/** To a directory and to Google's service at once, by the daemon as it is shipped; gives the number of rows. */
async function backUp(): Promise<number> {
  using database = new Database(databasePath);
  database.run("PRAGMA journal_mode = WAL");
  database.run("CREATE TABLE t (x)");
  const fill = database.query("INSERT INTO t VALUES (randomblob(1000))");
  // More than one chunk of an upload, and random bytes do not shrink.
  database.transaction(() => {
    for (let i = 0; i < 10_000; i++) fill.run();
  })();
  await using daemon = await startDaemon({
    configPath: directory.file("daemon.toml"),
    databases: [{ name: "app", path: databasePath, replicas: [local], destinations: [liveTable] }],
    program: "executable",
    logLevel: "debug",
  });
  await daemon.untilSaid("full backup stored");
  fill.run();
  const rows = 10_001;
  await eventually(async () => (await restoredRows(liveTable)) === rows, {
    what: "the newest row to be restorable",
    deadlineMs: 30_000,
    pollMs: 200,
  });
  await daemon.stop(10_000);
  const log = daemon.log.map((line) => JSON.stringify(line)).join("\n");
  // Tokens, keys, and the URIs of upload sessions, which authorize by themselves.
  expect(log).not.toMatch(/ya29|PRIVATE|upload_id/);
  return rows;
}

async function bakelite(table: Settings, ...args: readonly string[]): Promise<ProgramResult> {
  const config = directory.file(`config-${++configCount}.toml`);
  const keys = Object.entries(table).map(([key, value]) => `${key} = ${JSON.stringify(value)}\n`);
  const head = `[[database]]\nname = "app"\npath = ${JSON.stringify(databasePath)}\n`;
  await writeFile(config, `${head}[[database.backends]]\n${keys.join("")}`);
  return await runBakelite("executable", [...args, "--config", config]);
}

/** Of the database that a restore from there gives; null when there is none. */
async function restoredRows(table: Settings): Promise<number | null> {
  const output = directory.file(`out-${++configCount}.db`);
  const { status } = await bakelite(table, "restore", "--db", "app", "--output", output);
  if (status !== 0) return null;
  using restored = new Database(output, { readonly: true });
  return restored.query<{ n: number }, []>("SELECT count(*) AS n FROM t").get()?.n ?? null;
}

async function expectWhole(table: Settings): Promise<void> {
  expect(await restoredRows(table)).toBe(rowCount);
  expect(await bakelite(table, "verify")).toMatchObject({ status: 0 });
}

const hasRclone = findProgram("rclone") !== null;
console.log(`note: copied by ${hasRclone ? "rclone" : "a loop of our own, since rclone is not installed"}`);

/** rclone, with a configuration in its arguments alone. */
async function rclone(...args: readonly string[]): Promise<void> {
  await runProgram([
    "env",
    "-u",
    "AWS_CA_BUNDLE",
    "RCLONE_CONFIG=/dev/null",
    "rclone",
    "--quiet",
    "--retries",
    "1",
    ...args,
  ]);
}

test(
  "what the daemon stored in Google Cloud Storage is listed, verified, and copied from there by hand",
  async () => {
    await expectWhole(liveTable);
    const listed = await bakelite(liveTable, "list");
    expect(listed.stdout).toContain("app");
    const doctor = await bakelite(liveTable, "doctor");
    expect(doctor.stdout).toContain("create, get, list and delete objects");
    const usage = await bakelite(liveTable, "usage", "--json");
    expect(usage).toMatchObject({ status: 0 });
    const path = directory.file("from-gcs");
    await copyObjects(openGcs(liveTable), new FileBackend({ path }));
    await expectWhole({ type: "file", path });
  },
  TEST_MS,
);

test(
  "a replica in a directory that is copied to Google Cloud Storage restores from there",
  async () => {
    const bucket = scene.newBucket();
    const table = scene.table(bucket, { prefix: "copy" });
    if (hasRclone) {
      const target = `:gcs,service_account_file="${scene.keyFile}",bucket_policy_only,endpoint="${scene.stub.url}/storage/v1/":${bucket}/copy`;
      await rclone("--gcs-no-check-bucket", "copy", local, target);
    } else await copyObjects(new FileBackend({ path: local }), openGcs(table));
    await expectWhole(table);
  },
  TEST_MS,
);

test(
  "a replica in a directory that is copied to an SFTP server restores from there",
  async () => {
    const path = sshd.newPath();
    const table = sshd.table(path) as Settings;
    if (hasRclone)
      await rclone(
        "copy",
        local,
        `:sftp,host=127.0.0.1,port=${sshd.port},user=${sshd.user},key_file="${sshd.key}",shell_type=none:${path}`,
      );
    else await copyObjects(new FileBackend({ path: local }), openTable(table));
    await expectWhole(table);
    await runProgram(["cp", "-r", path, directory.file("from-sftp")]);
    await expectWhole({ type: "file", path: directory.file("from-sftp") });
  },
  TEST_MS,
);

await forRgw(({ newPlace }) => {
  test(
    "a replica in a directory that is copied to a bucket of S3 restores from there",
    async () => {
      await using place = await newPlace();
      const { endpoint, accessKeyId, secretAccessKey } = place.account;
      if (hasRclone)
        await rclone(
          "copy",
          local,
          `:s3,provider=Ceph,endpoint="${endpoint}",access_key_id=${accessKeyId},secret_access_key=${secretAccessKey}:${place.bucket}`,
        );
      else await copyObjects(new FileBackend({ path: local }), openS3(place));
      await expectWhole(s3Table(place));
    },
    TEST_MS,
  );
});
