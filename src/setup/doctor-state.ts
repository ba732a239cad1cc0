import { readdir, readFile, readlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { DatabaseConfig } from "../config/types.ts";
import { findLockHolder, type LockHolder } from "../state/instance-lock.ts";
import { statePaths } from "../state/layout.ts";
import { describeSilence, findTroubles, observe } from "../state/observe.ts";
import { lookAtFiles } from "../state/observe-files.ts";
import { BakeliteError } from "../util/errors.ts";
import { formatAgo } from "../util/timestamps.ts";
import { ENTER, findObstacle, READ, WRITE } from "./doctor-access.ts";
import { formatMode, kindOf, lstatOrNull, shellWord } from "./doctor-files.ts";
import { type Check, describeForCheck, fail, pass, warn } from "./doctor-report.ts";
import type { Scene } from "./doctor-scene.ts";

/** `.bakelite/` beside the database and the files in it. `path` is the database's, links followed. */
export async function judgeStateDirectory(
  { path, name }: { readonly path: string; readonly name: string },
  scene: Scene,
): Promise<readonly Check[]> {
  const { directory, ...files } = statePaths(path, name);
  const info = await lstatOrNull(directory);
  if (info === null) return [await judgeMissingDirectory(directory, scene)];
  if (!info.isDirectory()) {
    const message = `${directory} is ${kindOf(info)}, not a directory`;
    return [fail("state directory", message, "move it away; no link is followed there")];
  }
  const checks = [...(await findRefusal(directory, Object.values(files), scene))];
  if ((info.mode & 0o077) !== 0)
    checks.push(
      warn(
        "state directory",
        `${directory} has mode ${formatMode(info.mode)}: others may look into it`,
        `run: chmod 700 ${shellWord(directory)}`,
      ),
    );
  if (checks.length > 0) return checks;
  const owner = scene.people.userName(info.uid);
  return [pass("state directory", `${directory}, mode ${formatMode(info.mode)}, ${owner}`)];
}

async function judgeMissingDirectory(directory: string, { user, people }: Scene): Promise<Check> {
  const above = dirname(directory);
  const obstacle = user === null ? null : await findObstacle(user, people, { path: above, wanted: WRITE | ENTER });
  if (obstacle === null) return pass("state directory", `${directory} will be made when the daemon starts`);
  const fix = `give ${user?.name} write access to ${above}, or make ${directory} for it (mode 0700)`;
  return fail("state directory", `${directory} cannot be made: ${obstacle}`, fix);
}

/** The first that the daemon's user may not use: the directory, or a file in it that somebody else left. */
async function findRefusal(
  directory: string,
  files: readonly string[],
  { user, people }: Scene,
): Promise<readonly Check[]> {
  if (user === null) return [];
  const fix = `run: chown -R ${shellWord(user.name)} ${shellWord(directory)}`;
  const whole = await findObstacle(user, people, { path: directory, wanted: READ | WRITE | ENTER });
  if (whole !== null) return [fail("state directory", whole, fix)];
  for (const path of files) {
    // Closed to us: then nothing can be said of it.
    const isThere = (await lstatOrNull(path).catch(() => null)) !== null;
    const refusal = isThere ? await findObstacle(user, people, { path, wanted: READ | WRITE }) : null;
    if (refusal !== null) return [fail("state directory", refusal, `${fix} (something was run as another user)`)];
  }
  return [];
}

/** `sameFile`: other databases of the configuration that are this very file. */
export async function judgeLock(
  path: string,
  sameFile: readonly string[],
): Promise<{ readonly holder: LockHolder | null; readonly checks: readonly Check[] }> {
  if (sameFile.length > 0) {
    const message = `the same file is configured as ${sameFile.join(", ")} too, and it can be followed only once`;
    return { holder: null, checks: [fail("instance lock", message, "remove one of the two from the configuration")] };
  }
  try {
    const holder = await findLockHolder(path);
    if (holder === null) return { holder, checks: [pass("instance lock", "nobody follows the database now")] };
    if (holder.purpose === "reencrypt") {
      const message = `\`bakelite reencrypt\`${holder.pid === null ? "" : ` (PID ${holder.pid})`} is rewriting what is stored`;
      return { holder, checks: [warn("instance lock", message, "wait until it has ended, then start the daemon")] };
    }
    const who = holder.pid === null ? "a daemon of another container" : `the daemon with PID ${holder.pid}`;
    return { holder, checks: [pass("instance lock", `${who} follows the database`)] };
  } catch (error) {
    if (!(error instanceof BakeliteError) || error.code === "internal") throw error;
    const fix = error.hint ?? "run doctor as root or as the database's owner";
    const check = error.code === "storage-denied" ? warn : fail;
    return { holder: null, checks: [check("instance lock", describeForCheck(error), fix)] };
  }
}

/** What the daemon last published. Before its first start there is nothing, which is no fault. */
export async function judgeStatus(
  { name, path }: Pick<DatabaseConfig, "name" | "path">,
  { nowMs, isFollowed }: { readonly nowMs: number; readonly isFollowed: boolean },
): Promise<Check> {
  const seen = await lookAtFiles({ name, path, fallbackDirectory: undefined, nowMs });
  const { status } = seen;
  const look = "see `bakelite status` and docs/troubleshooting.md";
  if (status.outcome === "missing")
    return isFollowed
      ? warn("status", "a daemon follows the database and has published nothing yet", "look again in a few seconds")
      : pass("status", "no daemon has published anything yet");
  if (status.outcome === "unreadable")
    return warn(
      "status",
      status.reason,
      "run doctor as root or as the database's owner; a broken file is replaced by a running daemon",
    );
  const { state } = observe(seen);
  if (state === "stopped") return pass("status", `stopped ${formatAgo(Date.parse(status.value.written_at), nowMs)}`);
  if (state === "not running")
    return warn(
      "status",
      `${state}: ${describeSilence(state, status.value, seen)}`,
      "start the daemon, and see in its log why it ended",
    );
  const troubles = findTroubles(seen).map(({ message }) => message);
  return troubles.length === 0 ? pass("status", state) : warn("status", troubles.join("; "), look);
}

export interface OtherReplicatorTraces {
  /** `.app.db-litestream` beside the database; null: none. */
  readonly litestreamDirectory: string | null;
  /** Its tables' name stands on the first page. */
  readonly hasLitestreamTables: boolean;
  /** Processes with the name of a replicator that have the database open. */
  readonly users: readonly { readonly pid: number; readonly program: string }[];
  /** The same, of which it cannot be seen what they have open. */
  readonly suspects: readonly { readonly pid: number; readonly program: string }[];
}

/** Programs that checkpoint or replicate a database by themselves, as `/proc/<pid>/comm` shows them (15 characters). */
const REPLICATORS: ReadonlySet<string> = new Set(["litestream", "litefs", "sqlite3_rsync", "sqlite_rsync", "verneuil"]);

const LITESTREAM_TABLES = ["_litestream_seq", "_litestream_lock"];

/** What shows of another replicator without opening the database: its files, the first page, and the processes of this host. */
export async function findOtherReplicators(
  path: string,
  firstPage: Uint8Array,
  processes: readonly OpenedBy[],
): Promise<OtherReplicatorTraces> {
  const directory = join(dirname(path), `.${basename(path)}-litestream`);
  const info = await lstatOrNull(directory).catch(() => null);
  const text = Buffer.from(firstPage);
  const files = new Set([path, `${path}-wal`, `${path}-shm`]);
  return {
    litestreamDirectory: info === null ? null : directory,
    hasLitestreamTables: LITESTREAM_TABLES.some((table) => text.includes(table)),
    users: processes.filter(({ paths }) => paths?.some((opened) => files.has(opened)) === true),
    suspects: processes.filter(({ paths }) => paths === null),
  };
}

/** Pure. */
export function judgeOtherReplicators(traces: OtherReplicatorTraces): readonly Check[] {
  const { litestreamDirectory, hasLitestreamTables, users, suspects } = traces;
  if (users.length > 0)
    return users.map(({ pid, program }) =>
      fail(
        "other replicators",
        `${program} (PID ${pid}) has the database open: two that control the checkpoints spoil each other's backups`,
        `stop it (\`systemctl stop ${program}\`, or \`kill ${pid}\`) before the daemon starts`,
      ),
    );
  const checks: Check[] = [];
  if (litestreamDirectory !== null || hasLitestreamTables) {
    const what = [
      ...(litestreamDirectory === null ? [] : [litestreamDirectory]),
      ...(hasLitestreamTables ? ["tables of Litestream in the database"] : []),
    ];
    checks.push(
      warn(
        "other replicators",
        `Litestream replicates this database, or did: there is ${what.join(", and there are ")}`,
        "make sure that it does no longer; then remove what it left behind",
      ),
    );
  }
  for (const { pid, program } of suspects)
    checks.push(
      warn(
        "other replicators",
        `${program} runs (PID ${pid}), and what it has open cannot be seen`,
        "run doctor as root, or make sure that it does not replicate this database",
      ),
    );
  return checks.length > 0 ? checks : [pass("other replicators", "none to be seen")];
}

/** A process that is a replicator by its name, and the files it has open; null: not ours to see. */
export interface OpenedBy {
  readonly pid: number;
  readonly program: string;
  readonly paths: readonly string[] | null;
}

/** Every replicator among the processes of this host (Linux), by name; for all databases at once. */
export async function findReplicatorProcesses(): Promise<readonly OpenedBy[]> {
  const entries = await readdir("/proc").catch(() => []);
  const found: OpenedBy[] = [];
  for (const pid of entries.filter((entry) => /^\d+$/.test(entry)).map(Number)) {
    const program = (await readFile(`/proc/${pid}/comm`, "utf8").catch(() => "")).trim();
    if (!REPLICATORS.has(program)) continue;
    const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => null);
    if (descriptors === null) {
      found.push({ pid, program, paths: null });
      continue;
    }
    const paths = await Promise.all(descriptors.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")));
    found.push({ pid, program, paths });
  }
  return found;
}
