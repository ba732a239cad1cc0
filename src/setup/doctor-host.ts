import { readdir, readFile, readlink, realpath } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { resolve } from "node:path";
import type { Config, DatabaseConfig } from "../config/types.ts";
import { formatByteSize } from "../util/byte-sizes.ts";
import { describeError, systemErrorCode } from "../util/errors.ts";
import { formatListenAddress, type ListenAddress } from "../util/listen-address.ts";
import { plural } from "../util/plural.ts";
import { ENTER, findObstacle, READ, WRITE } from "./doctor-access.ts";
import { formatMode, shellWord, statOrNull } from "./doctor-files.ts";
import { lookAtFileSystem } from "./doctor-mounts.ts";
import { type Check, fail, pass, warn } from "./doctor-report.ts";
import type { Scene } from "./doctor-scene.ts";
import { judgeServicePaths } from "./doctor-service.ts";
import type { ServiceUnit } from "./doctor-unit.ts";

/** What the configuration says of itself; that it is valid has been found before. Pure. */
export function judgeConfiguration({ databases, daemon, sourcePath }: Config): Check {
  const destinations = databases.reduce((sum, { backends }) => sum + backends.length, 0);
  const what = `${sourcePath} is valid: ${plural(databases.length, "database")}, ${plural(destinations, "destination")}`;
  const left = daemon.db === undefined ? 0 : databases.length - 1;
  if (left === 0) return pass("configuration", what);
  return warn(
    "configuration",
    `\`db\` under [daemon] lets the daemon back up only ${daemon.db}, and not the other ${left}`,
    "remove `db` to back up every database",
  );
}

/** The configuration file: the daemon must read it, and nobody else what is secret in it. */
export async function judgeConfigFile(
  path: string,
  { holdsSecrets }: { readonly holdsSecrets: boolean },
  { user, people, unit }: Scene,
): Promise<readonly Check[]> {
  const info = await statOrNull(path);
  if (info === null) return [fail("config file", `${path} is gone`, "run doctor again")];
  const checks: Check[] = [];
  const mode = `${path} has mode ${formatMode(info.mode)}`;
  const group = people.groupName(info.gid);
  if ((info.mode & 0o002) !== 0)
    checks.push(
      fail("config file", `${mode}: everybody may change where backups go`, `run: chmod o-w ${shellWord(path)}`),
    );
  if (holdsSecrets && (info.mode & 0o004) !== 0)
    checks.push(
      fail(
        "config file",
        `${mode}, and it holds credentials: everybody may read them`,
        `run: chmod 600 ${shellWord(path)}`,
      ),
    );
  // The daemon's own group is the usual way to let it read a file that is root's.
  else if (holdsSecrets && (info.mode & 0o040) !== 0 && info.gid !== 0 && user?.gids.has(info.gid) !== true)
    checks.push(
      warn(
        "config file",
        `${mode}, and it holds credentials: the group ${group} may read them`,
        `run: chmod 600 ${shellWord(path)}, or put the credentials into files of their own`,
      ),
    );
  const obstacle = user === null ? null : await findObstacle(user, people, { path, wanted: READ });
  if (obstacle !== null)
    checks.push(
      fail("config file", obstacle, `let ${user?.name} read it: chgrp its group, chmod 640 ${shellWord(path)}`),
    );
  const real = await realpath(path).catch(() => path);
  checks.push(...judgeServicePaths(unit, { writable: [], readable: [real] }).filter(({ level }) => level !== "pass"));
  if (checks.length > 0) return checks;
  const secrets = holdsSecrets ? ", and it holds credentials" : "";
  return [pass("config file", `mode ${formatMode(info.mode)}, ${people.userName(info.uid)}:${group}${secrets}`)];
}

/** What a daemon needs for each database that it follows, at most, and for itself. */
const DESCRIPTORS_PER_DATABASE = 9;
const DESCRIPTORS_OF_DAEMON = 64;

/** `limit`: how many files the daemon may open; null: not known. Pure. */
export function judgeOpenFiles(databaseCount: number, limit: number | null): Check {
  const needed = databaseCount * DESCRIPTORS_PER_DATABASE + DESCRIPTORS_OF_DAEMON;
  const need = `${plural(databaseCount, "database")} may need ${needed} open files`;
  if (limit === null) return pass("open files", `${need}; the limit is not known`);
  const allowed = limit === Number.POSITIVE_INFINITY ? "there is no limit" : `the limit is ${limit}`;
  if (needed <= limit) return pass("open files", `${need}, ${allowed}`);
  return fail(
    "open files",
    `${need}, and ${allowed}`,
    `set LimitNOFILE=${2 ** Math.ceil(Math.log2(2 * needed))} in the service, or raise \`ulimit -n\``,
  );
}

/** What the service says; without one, the limit of this process, which a daemon started here would have. */
export async function openFilesLimit(unit: ServiceUnit | null): Promise<number | null> {
  // A unit that says nothing has systemd's own limit, half a million (DefaultLimitNOFILE=).
  if (unit !== null) return unit.openFiles;
  return parseOpenFilesLimit(await readFile("/proc/self/limits", "latin1").catch(() => ""));
}

/** The hard limit in `/proc/<pid>/limits`, to which Bun raises the soft one; null when it is not there. Source: proc_pid_limits(5). */
export function parseOpenFilesLimit(text: string): number | null {
  const hard = /^Max open files\s+\S+\s+(\d+|unlimited)/m.exec(text)?.[1];
  if (hard === undefined) return null;
  return hard === "unlimited" ? Number.POSITIVE_INFINITY : Number(hard);
}

/** `daemonPids`: of the daemons that follow a database of this configuration. */
export async function judgeMetricsAddress(
  address: ListenAddress | undefined,
  daemonPids: ReadonlySet<number>,
  { user }: Scene,
): Promise<Check> {
  if (address === undefined) return pass("metrics address", "none is configured");
  const text = formatListenAddress(address);
  if (address.port === 0) return pass("metrics address", `${text}: the system chooses a free port`);
  const least = await firstUnprivilegedPort();
  if (address.port < least && user !== null && user.uid !== 0)
    return fail(
      "metrics address",
      `${user.name} may not listen on ports below ${least}, and ${text} is one`,
      `choose a port from ${least} on for metrics_addr`,
    );
  const refusal = await tryToListen(address);
  switch (refusal) {
    case null:
      return pass("metrics address", `${text} is free`);
    case "EADDRINUSE": {
      const holder = await listenerAmong(daemonPids, address.port);
      if (holder !== "none") return pass("metrics address", `${text} is taken, as it should be while the daemon runs`);
      return fail(
        "metrics address",
        `${text} is taken by another program`,
        `choose another metrics_addr, or stop what listens there (\`ss -ltnp 'sport = :${address.port}'\` shows it)`,
      );
    }
    case "EADDRNOTAVAIL":
      return fail("metrics address", `no interface of this host has the address of ${text}`, "correct metrics_addr");
    default:
      return fail("metrics address", `cannot listen on ${text}: ${refusal}`, "correct metrics_addr");
  }
}

/** Listens for an instant; null when that went well, else the system's code or its words. Nobody can connect and be lost: it is closed at once. */
async function tryToListen({ host, port }: ListenAddress): Promise<string | null> {
  const server = createServer();
  const { promise, resolve: settle } = Promise.withResolvers<string | null>();
  server.once("error", (error) => settle(systemErrorCode(error) ?? describeError(error)));
  server.listen({ host, port, exclusive: true }, () => server.close(() => settle(null)));
  return await promise;
}

async function firstUnprivilegedPort(): Promise<number> {
  const text = await readFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", "latin1").catch(() => "1024");
  return /^\d+\s*$/.test(text) ? Number(text) : 1024;
}

/** Whether one of the processes has a socket that listens on the port; `unknown` where that is not ours to see. */
async function listenerAmong(pids: ReadonlySet<number>, port: number): Promise<"found" | "none" | "unknown"> {
  const tables = await Promise.all(
    ["/proc/net/tcp", "/proc/net/tcp6"].map((path) => readFile(path, "latin1").catch(() => "")),
  );
  const sockets = new Set(tables.flatMap((table) => listeningSockets(table, port)).map((inode) => `socket:[${inode}]`));
  let isHidden = false;
  for (const pid of pids) {
    const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => null);
    if (descriptors === null) isHidden = true;
    for (const descriptor of descriptors ?? [])
      if (sockets.has(await readlink(`/proc/${pid}/fd/${descriptor}`).catch(() => ""))) return "found";
  }
  return isHidden ? "unknown" : "none";
}

/**
 * The inodes of the sockets that listen on the port, in the text of `/proc/net/tcp`: `0: 0100007F:2382 00000000:0000 0A … inode …`,
 * the port in hexadecimal, state 0A for listening. Source: proc_pid_net(5).
 */
export function listeningSockets(table: string, port: number): readonly string[] {
  return table.split("\n").flatMap((line) => {
    const [, local = "", , state, , , , , , inode] = line.trim().split(/\s+/);
    const isListening = state === "0A" && Number.parseInt(local.split(":")[1] ?? "", 16) === port;
    return isListening && inode !== undefined ? [inode] : [];
  });
}

/** Where `verify --deep` restores to: there must be room for the largest database. */
export async function judgeTemporaryDirectory(
  env: Readonly<Record<string, string | undefined>>,
  databases: readonly Pick<DatabaseConfig, "name" | "path">[],
  { people, mounts, user }: Scene,
): Promise<Check> {
  const path = resolve(env["TMPDIR"] || tmpdir());
  const info = await statOrNull(path);
  if (info === null || !info.isDirectory())
    return warn("temporary files", `${path} is not a directory`, "set TMPDIR, or give `verify --deep` a --temp-dir");
  const real = await realpath(path);
  const obstacle =
    user?.isPresent === true ? await findObstacle(user, people, { path: real, wanted: WRITE | ENTER }) : null;
  if (obstacle !== null) return warn("temporary files", obstacle, "set TMPDIR, or give `verify --deep` a --temp-dir");
  const sizes = await Promise.all(
    databases.map(async ({ path: file }) => {
      const database = await statOrNull(file).catch(() => null);
      return database?.isFile() === true ? database.size : 0;
    }),
  );
  const largest = Math.max(0, ...sizes);
  const { freeBytes } = await lookAtFileSystem(real, mounts);
  const free = `${formatByteSize(freeBytes)} free in ${path}`;
  if (freeBytes >= largest) return pass("temporary files", free);
  return warn(
    "temporary files",
    `${free}, and \`verify --deep\` needs ${formatByteSize(largest)} for the largest database`,
    "set TMPDIR to a larger disk, or give `verify --deep` a --temp-dir",
  );
}
