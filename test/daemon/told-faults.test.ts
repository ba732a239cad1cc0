import { Database } from "bun:sqlite";
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { configPathIn, type DaemonDatabase, runBakelite, startDaemon } from "../oracle/daemon-process.ts";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { parseMetrics } from "./scrape.ts";

const mounted: string[] = [];
afterAll(() => {
  for (const path of mounted) Bun.spawnSync(["umount", "-l", path]);
});

/** A small disk of its own, until disposed. */
function mountDisk(path: string, size: string): Disposable {
  mkdirSync(path);
  const { success } = Bun.spawnSync(["mount", "-t", "tmpfs", "-o", `size=${size}`, "bakelite-test", path]);
  if (!success) throw new Error(`${path} cannot be mounted`);
  mounted.push(path);
  return { [Symbol.dispose]: () => void Bun.spawnSync(["umount", "-l", path]) };
}

const canMount = process.platform === "linux" && process.geteuid?.() === 0;
if (!canMount) console.log("note: what is told of full disks was not tried: only root can mount small ones");

function createDatabase({ path }: DaemonDatabase, bytes: number): Database {
  const db = new Database(path);
  db.run("PRAGMA journal_mode = WAL");
  db.run("CREATE TABLE t (x)");
  db.run("INSERT INTO t VALUES (randomblob(?))", [bytes]);
  return db;
}

test.skipIf(!canMount)(
  "a full destination, a full disk of the database, a mute destination and a slow first backup: status, --check and metrics tell each",
  async () => {
    await using directory: TemporaryDirectory = await temporaryDirectory("told");
    using _small = mountDisk(directory.file("small"), "3m");
    using _cramped = mountDisk(directory.file("cramped"), "4m");
    // Takes every connection, and never says anything.
    const mute = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
    const s3 = {
      type: "s3",
      bucket: "b",
      region: "us-east-1",
      access_key_id: "a",
      secret_access_key: "s",
      timeout: "60s",
    };
    const databases: readonly DaemonDatabase[] = [
      { name: "full", path: directory.file("full.db"), replicas: [directory.file("small", "replica")] },
      { name: "cramped", path: directory.file("cramped", "cramped.db"), replicas: [directory.file("cramped-replica")] },
      {
        name: "mute",
        path: directory.file("mute.db"),
        replicas: [],
        destinations: [{ ...s3, endpoint: `http://127.0.0.1:${mute.port}` }],
      },
      {
        name: "slow",
        path: directory.file("slow.db"),
        replicas: [],
        destinations: [{ type: "file", path: directory.file("slow-replica"), upload_rate_limit: "32KiB" }],
      },
    ];
    mkdirSync(directory.file("small", "replica"));
    const [full, cramped, unanswered, slow] = databases;
    if (full === undefined || cramped === undefined || unanswered === undefined || slow === undefined)
      throw new Error();
    using fullDb = createDatabase(full, 1000);
    using _crampedDb = createDatabase(cramped, 1000);
    using _muteDb = createDatabase(unanswered, 1000);
    using _slowDb = createDatabase(slow, 4_000_000);
    const configPath = configPathIn(directory.path);
    await using daemon = await startDaemon({
      configPath,
      databases,
      program: "executable",
      extraArguments: ["--metrics-addr", "127.0.0.1:0"],
    });
    const { metrics } = await daemon.untilSaid("bakelite is running");
    const check = async (name: string) => {
      const { status, stdout } = await runBakelite("executable", [
        "status",
        "--check",
        "--db",
        name,
        "--config",
        configPath,
      ]);
      return { status, stdout };
    };
    const row = async (name: string) =>
      (await runBakelite("executable", ["status", "--db", name, "--config", configPath])).stdout;
    const up = async (name: string) => {
      const samples = parseMetrics(await (await fetch(`${metrics}/metrics`)).text());
      return samples.find((sample) => sample.name === "bakelite_up" && sample.labels["database"] === name)?.value;
    };
    const roomAgain = async (name: string, disk: string) => {
      const remount = ["mount", "-o", "remount,size=64m", directory.file(disk)];
      expect(Bun.spawnSync(remount).success).toBe(true);
      await eventually(async () => (await check(name)).status === 0 && (await up(name)) === 1, {
        what: `${name} to be well again`,
        deadlineMs: 60_000,
        pollMs: 300,
        explain: async () => `${await row(name)}\n${daemon.tail}`,
      });
    };
    const well = { what: "a full backup", deadlineMs: 30_000 };
    for (const database of ["full", "cramped"])
      await daemon.untilStatus(({ full_backup, state }) => full_backup !== null && state === "live", {
        ...well,
        database,
      });
    expect([await check("full"), await up("full")]).toEqual([{ status: 0, stdout: "" }, 1]);

    // The database's own disk: nothing can be published there any more.
    writeFileSync(directory.file("cramped", "ballast"), new Uint8Array(0));
    Bun.spawnSync(["dd", "if=/dev/zero", `of=${directory.file("cramped", "ballast")}`, "bs=4k"], { stderr: "ignore" });

    // Its destination: more than there is room for.
    fullDb.run("INSERT INTO t VALUES (randomblob(4000000))");
    const stuck = await daemon.untilStatus(({ unhealthy }) => (unhealthy?.attempts ?? 0) > 0, {
      what: "a failed attempt",
      database: "full",
      deadlineMs: 30_000,
    });
    expect(stuck).toMatchObject({ state: "backing off", last_error: { code: "storage-full" } });
    expect(await check("full")).toEqual({
      status: 1,
      stdout: expect.stringMatching(/^full: backing off: stuck for .*space/),
    });
    expect(await row("full")).toMatch(/^full +backing off .*\n {2}stuck for .*\n {2}last error: .*space/m);
    expect(await up("full")).toBe(0);
    // At once: the longer it fails, the longer it waits before it tries again.
    await roomAgain("full", "small");

    await daemon.untilStatus(({ state }) => state === "starting", { what: "starting", database: "mute" });
    expect(await row("mute")).toMatch(/^mute +starting /m);
    await daemon.untilStatus(({ state }) => state === "snapshotting", {
      what: "snapshotting",
      database: "slow",
      deadlineMs: 20_000,
    });
    expect(await row("slow")).toMatch(/^slow +snapshotting /m);
    expect(await check("slow")).toEqual({ status: 1, stdout: expect.stringMatching(/^slow: .*full backup/) });
    expect(await up("slow")).toBe(0);

    await eventually(async () => (await row("cramped")).includes("stale"), {
      what: "the silence of the one that cannot publish to be told",
      deadlineMs: 40_000,
      pollMs: 500,
      explain: async () => `${await row("cramped")}\n${daemon.tail}`,
    });
    expect(await check("cramped")).toEqual({
      status: 1,
      stdout: expect.stringMatching(new RegExp(`^cramped: stale: .*though PID ${daemon.pid} exists`)),
    });
    expect(daemon.said("cannot write the status file").length).toBeGreaterThan(0);

    await roomAgain("cramped", "cramped");
    mute.stop(true);
  },
  120_000,
);
