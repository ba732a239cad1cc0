import { readdir, readlink, realpath } from "node:fs/promises";
import { join } from "node:path";
import { DEFAULT_CONFIG_PATH } from "../config/source.ts";
import { systemErrorCode } from "../util/errors.ts";
import { plural } from "../util/plural.ts";
import { lstatOrNull, readStart, shellWord, statOrNull } from "./doctor-files.ts";
import { type Check, fail, pass, warn } from "./doctor-report.ts";
import {
  DEFAULT_CONFIG,
  parseService,
  reachOf,
  type ServiceUnit,
  type UnitFile,
  type UnitPath,
} from "./doctor-unit.ts";
import type { DaemonUser, People } from "./doctor-users.ts";

const UNIT = "bakelite.service";
/** Where systemd looks for units of the system, what counts first in front. Source: systemd.unit(5). */
const UNIT_DIRECTORIES = [
  "/etc/systemd/system",
  "/run/systemd/system",
  "/usr/local/lib/systemd/system",
  "/usr/lib/systemd/system",
  "/lib/systemd/system",
];
const MAX_UNIT_BYTES = 256 * 1024;

/** Who runs the daemon, and how, as far as can be told. */
export interface DaemonHost {
  /** null: the service's user is not known here, so nothing can be said of permissions. */
  readonly user: DaemonUser | null;
  /** The service that runs this configuration; null: none does. */
  readonly unit: ServiceUnit | null;
  readonly checks: readonly Check[];
}

export interface FindHostOptions {
  /** `SYSTEMD_UNIT_PATH` is systemd's own way to name other directories. */
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly configPath: string;
  readonly people: People;
  /** Who runs this process. */
  readonly present: DaemonUser;
}

/** Looks for the service by its files alone: systemd is not asked. */
export async function findDaemonHost({ env, configPath, people, present }: FindHostOptions): Promise<DaemonHost> {
  const found = await readUnit(unitDirectories(env["SYSTEMD_UNIT_PATH"]));
  const without = (check: Check): DaemonHost => ({ user: present, unit: null, checks: [check] });
  switch (found.kind) {
    case "none":
      return without(pass("service", `there is no ${UNIT}; permissions are checked for ${present.name}`));
    case "masked":
      return without(warn("service", `${UNIT} is masked, so it cannot be started`, `run \`systemctl unmask ${UNIT}\``));
    case "unreadable":
      return without(
        warn(
          "service",
          `${found.path} cannot be read: ${found.reason}; permissions are checked for ${present.name}`,
          "run doctor as root, or mend that file",
        ),
      );
    case "found":
      break;
  }
  const unit = await withRealPaths(parseService(found.files));
  if (!(await runsConfig(unit, configPath))) {
    const other = unit.configPath === DEFAULT_CONFIG ? DEFAULT_CONFIG_PATH : unit.configPath;
    const message = `${UNIT} runs another configuration, ${other}; permissions are checked for ${present.name}`;
    return without(pass("service", message));
  }
  const user = unit.dynamicUser ? null : serviceUser(unit, people, present);
  return { user, unit, checks: await judgeService(unit, user) };
}

/** `override`: `$SYSTEMD_UNIT_PATH`. */
export function unitDirectories(override: string | undefined): readonly string[] {
  if (override === undefined || override === "") return UNIT_DIRECTORIES;
  const given = override.split(":").filter((path) => path.startsWith("/"));
  // An empty part at the end stands for the usual places. Source: systemd(1), "$SYSTEMD_UNIT_PATH".
  return override.endsWith(":") ? [...given, ...UNIT_DIRECTORIES] : given;
}

export type FoundUnit =
  | { readonly kind: "none" | "masked" }
  | { readonly kind: "unreadable"; readonly path: string; readonly reason: string }
  | { readonly kind: "found"; readonly files: readonly UnitFile[] };

/** The unit file and its drop-ins. */
export async function readUnit(directories: readonly string[]): Promise<FoundUnit> {
  const files: UnitFile[] = [];
  for (const path of [...(await findFragment(directories)), ...(await findDropIns(directories))]) {
    if (await isMask(path)) {
      // A masked drop-in only switches that drop-in off.
      if (path.endsWith(UNIT)) return { kind: "masked" };
      continue;
    }
    try {
      const bytes = await readStart(path, MAX_UNIT_BYTES);
      if (bytes === null) return { kind: "unreadable", path, reason: "it is not a regular file" };
      files.push({ path, text: new TextDecoder().decode(bytes) });
    } catch (error) {
      return { kind: "unreadable", path, reason: systemErrorCode(error) ?? "unexpected failure" };
    }
  }
  return files.length === 0 ? { kind: "none" } : { kind: "found", files };
}

async function findFragment(directories: readonly string[]): Promise<readonly string[]> {
  for (const directory of directories) {
    const path = join(directory, UNIT);
    if ((await lstatOrNull(path).catch(() => null)) !== null) return [path];
  }
  return [];
}

/** By name; of those with one name the directory that comes first counts. */
async function findDropIns(directories: readonly string[]): Promise<readonly string[]> {
  const byName = new Map<string, string>();
  for (const folder of [`${UNIT}.d`, "service.d"])
    for (const directory of directories) {
      const path = join(directory, folder);
      const names = await readdir(path).catch(() => []);
      for (const name of names) if (name.endsWith(".conf") && !byName.has(name)) byName.set(name, join(path, name));
    }
  return [...byName].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, path]) => path);
}

/** A link to /dev/null, or an empty file. */
async function isMask(path: string): Promise<boolean> {
  const target = await readlink(path).catch(() => null);
  if (target === "/dev/null") return true;
  const info = await statOrNull(path).catch(() => null);
  return info?.isFile() === true && info.size === 0;
}

/** systemd follows links in the paths of its settings, and what is compared with them has none. */
async function withRealPaths(unit: ServiceUnit): Promise<ServiceUnit> {
  const real = async (path: string) => await realpath(path).catch(() => path);
  const resolved = (paths: readonly UnitPath[]) =>
    Promise.all(paths.map(async ({ path, optional }) => ({ path: await real(path), optional })));
  return {
    ...unit,
    readWritePaths: await resolved(unit.readWritePaths),
    readOnlyPaths: await resolved(unit.readOnlyPaths),
    inaccessiblePaths: await resolved(unit.inaccessiblePaths),
  };
}

/** A unit that does not say which configuration it runs is taken for ours. */
async function runsConfig(unit: ServiceUnit, configPath: string): Promise<boolean> {
  if (unit.configPath === null) return true;
  const named = unit.configPath === DEFAULT_CONFIG ? DEFAULT_CONFIG_PATH : unit.configPath;
  const real = async (path: string) => await realpath(path).catch(() => path);
  return named === configPath || (await real(named)) === (await real(configPath));
}

function serviceUser(unit: ServiceUnit, people: People, present: DaemonUser): DaemonUser | null {
  const account = people.account(unit.user ?? "root");
  // A number need not be anybody's.
  const uid = account?.uid ?? (/^\d+$/.test(unit.user ?? "") ? Number(unit.user) : null);
  if (uid === null) return null;
  const name = account?.name ?? String(uid);
  const own = unit.group === null ? account?.gid : people.group(unit.group)?.gid;
  const more = unit.supplementaryGroups.flatMap((group) => people.group(group)?.gid ?? []);
  const gids = new Set([...(own === undefined ? [] : [own]), ...more, ...people.groupsOf(name).map(({ gid }) => gid)]);
  const overridesModes = uid === 0 && unit.keepsDacOverride;
  const isPresent = uid === present.uid && overridesModes === present.overridesModes;
  return { name, uid, gids, overridesModes, isPresent };
}

async function judgeService(unit: ServiceUnit, user: DaemonUser | null): Promise<readonly Check[]> {
  const [file = UNIT, ...dropIns] = unit.files;
  const checks: Check[] = [];
  for (const problem of unit.problems) checks.push(warn("service", problem, "mend that line; systemd passes over it"));
  if (unit.dynamicUser)
    checks.push(
      warn(
        "service",
        "it runs as a user that is only made when it starts (DynamicUser=), so permissions cannot be checked",
        `set User= to the owner of the databases and DynamicUser=no, in a drop-in (\`systemctl edit ${UNIT}\`)`,
      ),
    );
  else if (user === null)
    checks.push(
      fail(
        "service",
        `it runs as the user ${unit.user}, who is not in /etc/passwd`,
        `correct User= in a drop-in (\`systemctl edit ${UNIT}\`); a user of a directory service cannot be checked from here`,
      ),
    );
  if (unit.ownRoot)
    checks.push(
      warn(
        "service",
        "it runs in a root directory of its own, so its paths cannot be checked from here",
        "run doctor inside it, with the same configuration",
      ),
    );
  else checks.push(...(await missingPaths(unit)));
  if (checks.length > 0) return checks;
  const more = dropIns.length === 0 ? "" : ` with ${plural(dropIns.length, "drop-in")}`;
  return [pass("service", `${file}${more} runs as ${user?.name ?? "root"}`)];
}

/** A path of the sandbox that does not exist keeps the service from starting (status 226/NAMESPACE). */
async function missingPaths({ readWritePaths, readOnlyPaths, inaccessiblePaths }: ServiceUnit): Promise<Check[]> {
  const checks: Check[] = [];
  for (const { path, optional } of [...readWritePaths, ...readOnlyPaths, ...inaccessiblePaths]) {
    if (optional || (await statOrNull(path).catch(() => undefined)) !== null) continue;
    const message = `${path}, which the unit names, does not exist, so the service does not start`;
    checks.push(fail("service", message, `create it (\`mkdir ${shellWord(path)}\`), or write -${path} in the unit`));
  }
  return checks;
}

/** Whether the service's sandbox lets it write to, or read, these paths (real ones). Nothing without a service. */
export function judgeServicePaths(
  unit: ServiceUnit | null,
  paths: { readonly writable: readonly string[]; readonly readable: readonly string[] },
): readonly Check[] {
  if (unit === null || unit.ownRoot) return [];
  const checks: Check[] = [];
  for (const path of paths.writable) {
    const reach = reachOf(unit, path);
    if (reach.kind === "read-only")
      checks.push(
        fail(
          "service paths",
          `the service may not write to ${path} (${reach.because})`,
          `add ReadWritePaths=${path} under [Service] in a drop-in (\`systemctl edit ${UNIT}\`) and restart it`,
        ),
      );
    else if (reach.kind === "hidden") checks.push(hidden(path, reach.because));
  }
  for (const path of paths.readable) {
    const reach = reachOf(unit, path);
    if (reach.kind === "hidden") checks.push(hidden(path, reach.because));
  }
  return checks.length > 0 ? checks : [pass("service paths", "the service's sandbox lets it through")];
}

function hidden(path: string, because: string): Check {
  return fail(
    "service paths",
    `the service does not see ${path} (${because})`,
    `put it elsewhere, or switch that setting off in a drop-in (\`systemctl edit ${UNIT}\`)`,
  );
}
