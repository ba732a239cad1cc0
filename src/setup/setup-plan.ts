import { readFile, realpath } from "node:fs/promises";
import { dirname, join } from "node:path";
import { readKeyFile } from "../config/key-file.ts";
import { DEFAULT_CONFIG_PATH } from "../config/source.ts";
import type { BackendConfig, Config } from "../config/types.ts";
import { formatKeyText } from "../format/envelope.ts";
import { convertToWal } from "../sqlite/control.ts";
import { BakeliteError } from "../util/errors.ts";
import { ENTER, findObstacle, READ, WRITE } from "./doctor-access.ts";
import { namedFiles } from "./doctor-credentials.ts";
import { lookAtDatabase } from "./doctor-database.ts";
import { isWithin, statOrNull } from "./doctor-files.ts";
import type { DaemonUser, People } from "./doctor-users.ts";
import { DROP_IN_MARK, dropInText } from "./service-drop-in.ts";
import { giveTo, makeDirectory, makeKey, type Owner, runCommand, type Step, writeFile } from "./setup-steps.ts";
import type { SystemService } from "./system-service.ts";

/** What is to be set up, whoever asked for it. */
export interface SetupRequest {
  readonly config: Config;
  /** The text of the configuration to write; null: it is there already, as it should be. */
  readonly toml: string | null;
  /** Where the configuration that it replaces is kept; null: there is none. */
  readonly keepOldAs: string | null;
  readonly credentials: { readonly path: string; readonly text: string } | null;
  readonly keyFile: WantedKey | null;
  /** Databases that are put into WAL mode. */
  readonly convert: readonly string[];
  /** null: this machine's service is left alone. */
  readonly service: WantedService | null;
}

export interface WantedKey {
  readonly path: string;
  /** `copy-of`: the service's user cannot reach that file, so it gets a copy at `path`. */
  readonly from: "new" | "there" | { readonly copyOf: string };
}

export interface WantedService {
  /** null: as the unit says, which is root. */
  readonly user: ServiceUser | null;
  readonly isEnabled: boolean;
  readonly timers: readonly string[];
}

/** Whom the service runs as. */
export interface ServiceUser {
  readonly name: string;
  readonly group: string;
  readonly owner: Owner;
  /** For permissions. */
  readonly access: DaemonUser;
}

export interface SetupPlan {
  readonly steps: readonly Step[];
  /** What is not done, and why. */
  readonly notes: readonly string[];
}

/** Throws `usage` when this host knows no such user or group. */
export function serviceUser(people: People, name: string, groupName: string | undefined): ServiceUser {
  const account = people.account(name);
  if (account === null)
    throw new BakeliteError("usage", `there is no user ${JSON.stringify(name)} on this host`, {
      hint: `name the user that runs the application, or make one: useradd --system --no-create-home ${name}`,
    });
  const group = groupName === undefined ? null : people.group(groupName);
  if (groupName !== undefined && group === null)
    throw new BakeliteError("usage", `there is no group ${JSON.stringify(groupName)} on this host`);
  const gid = group?.gid ?? account.gid;
  const gids = new Set([gid, ...people.groupsOf(account.name).map((each) => each.gid)]);
  return {
    name: account.name,
    group: group?.name ?? people.groupName(gid),
    owner: { uid: account.uid, gid },
    access: { name: account.name, uid: account.uid, gids, overridesModes: account.uid === 0, isPresent: false },
  };
}

/**
 * Every change that the request needs, in the order in which they are made, so that what is not complete is never in use. Reads this
 * machine and changes nothing. Throws `key-wrong` for a key file that is none.
 */
export async function planSetup(request: SetupRequest, people: People, system: SystemService): Promise<SetupPlan> {
  const { config, toml, service } = request;
  const user = service?.user ?? null;
  const steps: Step[] = [];
  const notes: string[] = [];
  const configDirectory = dirname(config.sourcePath);
  if (toml !== null && (await statOrNull(configDirectory)) === null)
    steps.push(makeDirectory(configDirectory, null, 0o755));
  steps.push(...(await keySteps(request.keyFile, user)));
  if (request.credentials !== null) steps.push(credentialsStep(request.credentials, user));
  for (const database of config.databases)
    for (const backend of database.backends)
      steps.push(...(await directorySteps(backend, database.name, user, people)));
  if (toml !== null)
    steps.push(writeFile({ path: config.sourcePath, text: toml, mode: 0o644, owner: null, keepAs: request.keepOldAs }));
  // Nothing takes it back, so what can still fail and be taken back comes first.
  for (const path of request.convert) steps.push(convertStep(path));
  if (user !== null) {
    const reading = await readingSteps(request, user, people);
    steps.push(...reading.steps);
    notes.push(...reading.notes);
    for (const { path } of config.databases) steps.push(...(await stateSteps(path, user)));
  }
  if (service !== null) {
    const { steps: more, notes: skipped } = await serviceSteps(config, service, system);
    steps.push(...more);
    notes.push(...skipped);
  }
  return { steps: distinct(steps), notes };
}

/** Two databases may share a directory or a key. */
function distinct(steps: readonly Step[]): readonly Step[] {
  const seen = new Set<string>();
  return steps.filter(({ what }) => !seen.has(what) && seen.add(what));
}

const KEY_BYTES = 32;

async function keySteps(key: WantedKey | null, user: ServiceUser | null): Promise<readonly Step[]> {
  if (key === null || key.from === "there") return [];
  const owner = user?.owner ?? null;
  if (key.from === "new")
    return [makeKey(key.path, formatKeyText(crypto.getRandomValues(new Uint8Array(KEY_BYTES))), owner)];
  const because = `copy the key ${key.from.copyOf}, which ${user?.name ?? "the service"} cannot read there`;
  return [makeKey(key.path, formatKeyText(await readKeyFile(key.from.copyOf)), owner, because)];
}

function credentialsStep(
  { path, text }: { readonly path: string; readonly text: string },
  user: ServiceUser | null,
): Step {
  return writeFile({
    path,
    text,
    mode: 0o600,
    owner: user?.owner ?? null,
    // What was typed without being shown is not shown now.
    shown: text.replace(/^([^=\n]*(?:secret|key|token|password)[^=\n]*=\s*).*$/gim, "$1…"),
  });
}

/** A directory on this host that backups go to. */
async function directorySteps(
  backend: BackendConfig,
  database: string,
  user: ServiceUser | null,
  people: People,
): Promise<readonly Step[]> {
  if (backend.type !== "file") return [];
  const { path } = backend;
  if ((await statOrNull(path)) === null) return [makeDirectory(path, user?.owner ?? null, 0o700)];
  if (user === null) return [];
  const { owner } = user;
  const steps: Step[] = [];
  const wanted = READ | WRITE | ENTER;
  const real = await realpath(path);
  if ((await findObstacle(user.access, people, { path: real, wanted })) !== null)
    steps.push(giveTo({ path: real, owner, ownerName: nameOf(user), addMode: 0o700 }));
  const own = join(real, database);
  // A daemon that ran as somebody else made it.
  if ((await belongsToAnother(own, owner)) && user.access.uid !== 0)
    steps.push(giveTo({ path: own, owner, ownerName: nameOf(user), recursive: true }));
  return steps;
}

/** `.bakelite/` beside a database, from a daemon that ran as somebody else. */
async function stateSteps(databasePath: string, user: ServiceUser): Promise<readonly Step[]> {
  const directory = join(dirname(await realpath(databasePath).catch(() => databasePath)), ".bakelite");
  if (user.access.uid === 0 || !(await belongsToAnother(directory, user.owner))) return [];
  return [giveTo({ path: directory, owner: user.owner, ownerName: nameOf(user), recursive: true })];
}

async function belongsToAnother(path: string, { uid }: Owner): Promise<boolean> {
  const info = await statOrNull(path);
  return info !== null && info.uid !== uid;
}

/** What the service's user must be able to read, and cannot yet. */
async function readingSteps(
  { config, toml, keyFile, credentials }: SetupRequest,
  user: ServiceUser,
  people: People,
): Promise<SetupPlan> {
  const steps: Step[] = [];
  const notes: string[] = [];
  const made = new Set([keyFile !== null && keyFile.from !== "there" ? keyFile.path : "", credentials?.path ?? ""]);
  for (const { path, isSecret } of filesRead(config)) {
    if (made.has(path) || (await statOrNull(path).catch(() => null)) === null) continue;
    const obstacle = await findObstacle(user.access, people, { path, wanted: READ });
    if (obstacle === null) continue;
    const folder = await findObstacle(user.access, people, { path: dirname(path), wanted: ENTER });
    const ownerName = nameOf(user);
    if (folder !== null)
      notes.push(`${obstacle}; move it to where ${user.name} can read it, and correct the configuration`);
    else if (isSecret) steps.push(giveTo({ path, owner: user.owner, ownerName, addMode: 0o400 }));
    else notes.push(`${obstacle}; let ${user.name} read it: chmod a+r ${path}`);
  }
  if (toml === null && (await findObstacle(user.access, people, { path: config.sourcePath, wanted: READ })) !== null) {
    const info = await statOrNull(config.sourcePath);
    const owner = { uid: info?.uid ?? 0, gid: user.owner.gid };
    steps.push(
      giveTo({ path: config.sourcePath, owner, ownerName: `the group ${user.group}, to read`, addMode: 0o040 }),
    );
  }
  return { steps, notes };
}

function filesRead(config: Config): readonly { readonly path: string; readonly isSecret: boolean }[] {
  return config.databases.flatMap(({ encryption, backends }) => [
    ...(encryption.mode === "key-file" ? [{ path: encryption.keyFile, isSecret: true }] : []),
    ...backends.flatMap((backend) => [...namedFiles(backend)]),
  ]);
}

/** Applications that are in the middle of something keep it from being done; the daemon then says `not wal`. */
function convertStep(path: string): Step {
  return {
    what: `put ${path} into WAL mode, which stays with the file and which every application on it then uses`,
    shown: null,
    isOptional: true,
    async run() {
      convertToWal(path);
      return null;
    },
  };
}

/** Of those that are there: the ones that must be put into WAL mode first. */
export async function databasesToConvert(config: Config): Promise<readonly string[]> {
  const paths: string[] = [];
  for (const { path } of config.databases) {
    const { header } = await lookAtDatabase(await realpath(path).catch(() => path));
    if (header?.kind === "sqlite" && !header.header.isWal) paths.push(path);
  }
  return paths;
}

async function serviceSteps(config: Config, wanted: WantedService, system: SystemService): Promise<SetupPlan> {
  if (system.unit === "none")
    return {
      steps: [],
      notes: [
        `skipped the service: there is no bakelite.service on this host; start \`bakelite daemon --config ${config.sourcePath}\` yourself`,
      ],
    };
  const real = async (path: string) => await realpath(path).catch(() => path);
  const writable: string[] = [];
  for (const { path, backends } of config.databases) {
    writable.push(dirname(await real(path)));
    for (const backend of backends) if (backend.type === "file") writable.push(await real(backend.path));
  }
  const readable = [config.sourcePath, ...filesRead(config).map(({ path }) => path)];
  const text = dropInText({
    user: wanted.user?.name ?? null,
    group: wanted.user?.group ?? null,
    writable,
    readable: readable.filter((path) => !writable.some((root) => isWithin(path, root))),
    configPath: config.sourcePath === DEFAULT_CONFIG_PATH ? null : config.sourcePath,
  });
  const steps: Step[] = [];
  for (const path of system.dropInPaths) {
    const folder = dirname(path);
    if ((await statOrNull(folder)) === null) steps.push(makeDirectory(folder, null, 0o755));
    steps.push(
      writeFile({ path, text, mode: 0o644, owner: null, keepAs: (await isForeign(path)) ? `${path}.old` : null }),
    );
  }
  if (!system.isRunning) {
    const left = wanted.isEnabled
      ? "systemctl daemon-reload && systemctl enable --now bakelite"
      : "systemctl daemon-reload";
    return { steps, notes: [`skipped what needs a running systemd; on the host that boots this: ${left}`] };
  }
  const run = (what: string, args: readonly string[], undo: readonly string[] | null = null) =>
    steps.push(runCommand(["systemctl", ...args], what, undo === null ? null : ["systemctl", ...undo]));
  if (system.unit === "masked")
    run("let the service be started", ["unmask", "bakelite.service"], ["mask", "bakelite.service"]);
  run("let systemd read the new settings", ["daemon-reload"]);
  if (wanted.isEnabled) {
    run("start it at every boot", ["enable", "bakelite.service"], ["disable", "bakelite.service"]);
    run("start it now", ["restart", "bakelite.service"]);
  }
  for (const timer of wanted.timers)
    run("check on a schedule", ["enable", "--now", timer], ["disable", "--now", timer]);
  return { steps, notes: [] };
}

/** A file of that name that init did not write. */
async function isForeign(path: string): Promise<boolean> {
  if ((await statOrNull(path)) === null) return false;
  return !(await readFile(path, "utf8")).startsWith(DROP_IN_MARK);
}

function nameOf({ name, group }: ServiceUser): string {
  return `${name}:${group}`;
}
