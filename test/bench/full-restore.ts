import { mkdir, readdir, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { formatKeyText } from "../../src/format/envelope.ts";
import { bakeliteCommand, configPathIn } from "../oracle/daemon-process.ts";
import { seededRandom } from "../support/random.ts";
import { mebibytes, number, seconds } from "./figures.ts";
import { type Litestream, LitestreamProcess, writeLitestreamConfig } from "./litestream.ts";
import { processFigures } from "./proc.ts";
import type { BenchReport, BenchTable, Budget } from "./report.ts";
import { type BenchContext, fillDatabase, runToEnd, startBakelite, untilFullBackup } from "./scene.ts";

/** The first backup of a large database and its restore, with bakelite, sealed and not, with Litestream, and with `cp`. */

interface Measured {
  readonly label: string;
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly peakBytes: number;
  /** Of what is stored; NaN for a restore. */
  readonly storedBytes: number;
}

interface SizeResult {
  readonly bytes: number;
  readonly backups: readonly Measured[];
  readonly restores: readonly Measured[];
  readonly budgets: { readonly full: readonly Budget[]; readonly restore: readonly Budget[] };
}

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const RESTORE_BUDGET_FACTOR = 1.5;
const MEMORY_BUDGET_BYTES = 256 * MIB;
const DEADLINE_MS = 300_000;
const CHECK = fileURLToPath(new URL("integrity-check.ts", import.meta.url));

/** Both come from the same scenes: what is restored is what was backed up. */
export async function benchFullAndRestore(context: BenchContext): Promise<readonly BenchReport[]> {
  const sizes: SizeResult[] = [];
  for (const bytes of context.quick ? [32 * MIB] : [256 * MIB, GIB]) sizes.push(await measureSize(context, bytes));
  const full: BenchReport = {
    name: "full",
    tables: sizes.map(({ bytes, backups }) => tableOf(`First full backup of ${mebibytes(bytes)}`, bytes, backups)),
    budgets: sizes.flatMap(({ budgets }) => budgets.full),
    notes: [
      "From the start of the process until the destination, a directory on the same disk, holds what a restore needs; the database was just read and lies in memory. Content: words, one fifth random bytes, one index.",
      "bakelite: zstd level 3, every page hashed, each object synced. Litestream: its defaults (LZ4), `litestream replicate`. `cp` is followed by a sync.",
    ],
  };
  const restore: BenchReport = {
    name: "restore",
    tables: sizes.map(({ bytes, restores }) => tableOf(`Restore of ${mebibytes(bytes)}`, bytes, restores)),
    budgets: sizes.flatMap(({ budgets }) => budgets.restore),
    notes: [
      "bakelite always checks every page against its hash and the whole against the digest, and syncs the result; *integrity_check* says where SQLite checked it, too. Litestream checks only when asked to. Here `cp` is not synced.",
      "What bakelite restored was compared with the database byte by byte.",
    ],
  };
  return [full, restore];
}

async function measureSize(context: BenchContext, wantedBytes: number): Promise<SizeResult> {
  const { litestream, seed } = context;
  const folder = join(context.directory, `${wantedBytes}`);
  await mkdir(folder);
  const say = (what: string) => context.say(`${mebibytes(wantedBytes)}: ${what}`);
  const path = join(folder, "app.db");
  const keyFile = join(folder, "key.txt");
  await writeFile(keyFile, `${formatKeyText(seededRandom(seed).fork("key").bytes(32))}\n`, { mode: 0o600 });
  say("making the database");
  await fillDatabase({ path, bytes: wantedBytes, seed });
  const { size: bytes } = await stat(path);
  const copy = join(folder, "copy.db");

  say("cp");
  const copied = await runToEnd(["cp", "--reflink=never", path, copy]);
  const synced = await runToEnd(["sync", copy]);
  say("integrity_check");
  const checked = await runToEnd([process.execPath, CHECK, copy]);
  const copiedAndSynced = { ...add("cp, sync", copied, synced), storedBytes: bytes };

  say("full backup");
  const plain = await backUp(folder, path, join(folder, "replica"), "bakelite");
  say("restore");
  const restores = [
    { ...add("cp, integrity_check", copied, checked), storedBytes: Number.NaN },
    await restore(folder, path, "bakelite, integrity_check", "full"),
    await restore(folder, path, "bakelite", "none"),
  ];
  await rm(join(folder, "replica"), { recursive: true });
  say("full backup, sealed");
  const sealed = await backUp(folder, path, join(folder, "sealed"), "bakelite, sealed", keyFile);
  say("restore, sealed");
  restores.push(await restore(folder, path, "bakelite, sealed, integrity_check", "full"));
  await rm(join(folder, "sealed"), { recursive: true });

  const backups = [copiedAndSynced, plain, sealed];
  if (litestream !== null) {
    say("Litestream");
    // It writes into the database, so it gets one of its own.
    const other = await measureLitestream(litestream, folder, copy);
    backups.push(other.backup);
    restores.push(...other.restores);
  }
  await rm(folder, { recursive: true });
  return { bytes, backups, restores, budgets: budgetsOf(bytes, backups, restores) };
}

async function backUp(
  folder: string,
  path: string,
  replica: string,
  label: string,
  keyFile?: string,
): Promise<Measured> {
  await rm(join(folder, ".bakelite"), { recursive: true, force: true });
  const startMs = performance.now();
  await using daemon = await startBakelite(folder, { path, replica }, keyFile === undefined ? {} : { keyFile });
  await untilFullBackup(daemon);
  const tookSeconds = (performance.now() - startMs) / 1000;
  const { cpuSeconds, peakBytes } = processFigures(daemon.pid);
  await daemon.stop();
  return { label, seconds: tookSeconds, cpuSeconds, peakBytes, storedBytes: await bytesBelow(replica) };
}

async function restore(folder: string, path: string, label: string, integrity: "full" | "none"): Promise<Measured> {
  const output = join(folder, "restored.db");
  const args = [
    "restore",
    "--config",
    configPathIn(folder),
    "--db",
    "app",
    "--output",
    output,
    "--integrity",
    integrity,
  ];
  const result = await runToEnd(bakeliteCommand("executable", args));
  // A fast restore of something else is worth nothing.
  await runToEnd(["cmp", path, output]);
  await rm(output);
  return { label, ...result, storedBytes: Number.NaN };
}

async function measureLitestream(
  litestream: Litestream,
  folder: string,
  path: string,
): Promise<{ readonly backup: Measured; readonly restores: readonly Measured[] }> {
  const replica = join(folder, "litestream");
  const config = join(folder, "litestream.yml");
  await writeLitestreamConfig(config, [{ path, replica }]);
  const startMs = performance.now();
  let backup: Measured;
  {
    await using other = new LitestreamProcess(litestream, config);
    await other.untilStored(replica, DEADLINE_MS);
    const tookSeconds = (performance.now() - startMs) / 1000;
    const { cpuSeconds, peakBytes } = processFigures(other.pid);
    const storedBytes = await bytesBelow(join(replica, "ltx", "0"));
    backup = { label: "Litestream", seconds: tookSeconds, cpuSeconds, peakBytes, storedBytes };
  }
  const restores: Measured[] = [];
  for (const [label, mode] of [
    ["Litestream, integrity_check", "full"],
    ["Litestream", "none"],
  ] as const) {
    const output = join(folder, "restored.db");
    const command = [litestream.path, "restore", "-config", config, "-integrity-check", mode, "-o", output, path];
    restores.push({ label, ...(await runToEnd(command)), storedBytes: Number.NaN });
    await rm(output);
  }
  return { backup, restores };
}

function budgetsOf(bytes: number, backups: readonly Measured[], restores: readonly Measured[]): SizeResult["budgets"] {
  const backup = find(backups, "bakelite");
  const restored = find(restores, "bakelite, integrity_check");
  const copied = find(restores, "cp, integrity_check");
  const size = mebibytes(bytes);
  const full: Budget[] = [
    atMost(`resident memory during a full backup of ${size}`, backup.peakBytes, MEMORY_BUDGET_BYTES, mebibytes),
  ];
  const restore: Budget[] = [
    atMost(
      `restore of ${size} with integrity_check`,
      restored.seconds,
      copied.seconds * RESTORE_BUDGET_FACTOR,
      seconds,
    ),
    atMost(`resident memory during a restore of ${size}`, restored.peakBytes, MEMORY_BUDGET_BYTES, mebibytes),
  ];
  const others = { backup: backups.find(({ label }) => label === "Litestream"), restores };
  if (others.backup !== undefined) {
    full.push(
      atMost(`full backup of ${size}, no slower than Litestream's`, backup.seconds, others.backup.seconds, seconds),
    );
    for (const [ours, theirs] of [
      ["bakelite, integrity_check", "Litestream, integrity_check"],
      ["bakelite", "Litestream"],
    ] as const) {
      const limit = find(restores, theirs).seconds;
      const what = ours === "bakelite" ? "without" : "with";
      restore.push(
        atMost(
          `restore of ${size} ${what} integrity_check, no slower than Litestream's`,
          find(restores, ours).seconds,
          limit,
          seconds,
        ),
      );
    }
  }
  return { full, restore };
}

function atMost(what: string, value: number, limit: number, format: (value: number) => string): Budget {
  return { what, limit: format(limit), measured: format(value), met: value <= limit };
}

function tableOf(title: string, bytes: number, rows: readonly Measured[]): BenchTable {
  const stores = rows.some(({ storedBytes }) => Number.isFinite(storedBytes));
  return {
    title,
    columns: ["", "time", "MB/s", "CPU s/GB", "peak memory", ...(stores ? ["stored"] : [])],
    rows: rows.map((row) => [
      row.label,
      seconds(row.seconds),
      number(bytes / 1e6 / row.seconds),
      number(row.cpuSeconds / (bytes / 1e9)),
      mebibytes(row.peakBytes),
      ...(stores ? [mebibytes(row.storedBytes)] : []),
    ]),
  };
}

function add(
  label: string,
  ...steps: readonly Omit<Measured, "label" | "storedBytes">[]
): Omit<Measured, "storedBytes"> {
  return {
    label,
    seconds: steps.reduce((total, step) => total + step.seconds, 0),
    cpuSeconds: steps.reduce((total, step) => total + step.cpuSeconds, 0),
    peakBytes: Math.max(...steps.map((step) => step.peakBytes)),
  };
}

function find(rows: readonly Measured[], label: string): Measured {
  const found = rows.find((row) => row.label === label);
  if (found === undefined) throw new Error(`${label} was not measured`);
  return found;
}

async function bytesBelow(directory: string): Promise<number> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const sizes = await Promise.all(
    entries
      .filter((entry) => entry.isFile())
      .map(async (entry) => (await stat(join(entry.parentPath, entry.name))).size),
  );
  return sizes.reduce((total, size) => total + size, 0);
}
