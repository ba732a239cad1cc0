import { realpath } from "node:fs/promises";
import { dirname } from "node:path";
import { openDestination } from "../config/assemble.ts";
import type { BackendConfig, Config, DatabaseConfig } from "../config/types.ts";
import { emptyKeyRing } from "../format/envelope.ts";
import { resolveDatabasePath } from "../state/layout.ts";
import type { Backend } from "../storage/backend.ts";
import { BakeliteError } from "../util/errors.ts";
import { Semaphore } from "../util/semaphore.ts";
import { judgeAgreement, type ListedDestination } from "./doctor-agreement.ts";
import { judgeCredentials } from "./doctor-credentials.ts";
import {
  type DatabaseLook,
  judgeDatabase,
  judgeDatabaseDisk,
  judgePermissions,
  judgeWal,
  judgeWalMode,
  lookAtDatabase,
} from "./doctor-database.ts";
import { withinDeadline } from "./doctor-deadline.ts";
import { type Answer, askDestination, judgeDirectory, locationOf } from "./doctor-destination.ts";
import {
  judgeConfigFile,
  judgeConfiguration,
  judgeMetricsAddress,
  judgeOpenFiles,
  judgeTemporaryDirectory,
  openFilesLimit,
} from "./doctor-host.ts";
import { type KeyLook, lookAtKey } from "./doctor-key.ts";
import { readMounts } from "./doctor-mounts.ts";
import {
  type Check,
  type CheckName,
  type DatabaseReport,
  type DestinationReport,
  type DoctorReport,
  describeForCheck,
  fail,
  warn,
} from "./doctor-report.ts";
import type { Scene } from "./doctor-scene.ts";
import { type DaemonHost, findDaemonHost, judgeServicePaths } from "./doctor-service.ts";
import {
  findOtherReplicators,
  findReplicatorProcesses,
  judgeLock,
  judgeOtherReplicators,
  judgeStateDirectory,
  judgeStatus,
  type OpenedBy,
} from "./doctor-state.ts";
import { presentUser, readPeople } from "./doctor-users.ts";

export interface DoctorInputs {
  readonly config: Config;
  /** Those to look at. */
  readonly databases: readonly DatabaseConfig[];
  /** Credentials stand in the configuration file itself. */
  readonly holdsSecrets: boolean;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly nowMs: number;
  readonly signal: AbortSignal;
  /** Of each look at something that may hang; 10 s by default. */
  readonly deadlineMs?: number;
  /** `openDestination` by default. */
  readonly open?: (config: BackendConfig) => Backend;
}

const DEADLINE_MS = 10_000;
/** Databases that are looked at together: each waits for its destinations most of the time. */
const CONCURRENCY = 16;

/**
 * Looks at all that a daemon needs, and at what it stored, for every given database. Writes nothing, opens no database with
 * SQLite, and attaches to nothing. What cannot be looked at is a check that failed; this rejects only when interrupted.
 */
export async function runDoctor(inputs: DoctorInputs): Promise<DoctorReport> {
  const { config, env, signal } = inputs;
  const people = await readPeople();
  const deadlineMs = inputs.deadlineMs ?? DEADLINE_MS;
  const what = "the service's unit and its paths were looked at";
  const present = await presentUser(people);
  const {
    user,
    unit,
    checks: service,
  } = await orInstead(signal, {
    look: () =>
      withinDeadline({ ms: deadlineMs, what, signal }, () =>
        findDaemonHost({ env, configPath: config.sourcePath, people, present }),
      ),
    instead: (error): DaemonHost => ({ user: present, unit: null, checks: [brokenCheck("service", error)] }),
  });
  const scene: Scene = {
    user,
    unit,
    people,
    mounts: await readMounts(),
    nowMs: inputs.nowMs,
    deadlineMs,
    signal,
  };
  const replicators = await findReplicatorProcesses();
  const sameFiles = await findSameFiles(config.databases, scene);
  const slots = new Semaphore(CONCURRENCY);
  const examined = await Promise.all(
    inputs.databases.map(async (database) => {
      using _slot = await slots.acquire({ signal });
      const sameFile = sameFiles.get(database.name) ?? [];
      return await examineDatabase(database, { ...inputs, replicators, sameFile }, scene);
    }),
  );
  signal.throwIfAborted();
  const pids = new Set(examined.flatMap(({ pid }) => (pid === null ? [] : [pid])));
  return {
    user: user?.name ?? null,
    service: unit?.files[0] ?? null,
    host: await examineHost(inputs, service, pids, scene),
    databases: examined.map(({ report }) => report),
  };
}

async function examineHost(
  { config, databases, holdsSecrets, env }: DoctorInputs,
  service: readonly Check[],
  pids: ReadonlySet<number>,
  scene: Scene,
): Promise<readonly Check[]> {
  const { unit } = scene;
  return [
    judgeConfiguration(config),
    ...(await guarded("config file", scene, () => judgeConfigFile(config.sourcePath, { holdsSecrets }, scene))),
    ...service,
    judgeOpenFiles(config.daemon.db === undefined ? config.databases.length : 1, await openFilesLimit(unit)),
    ...(await guarded("metrics address", scene, async () => [
      await judgeMetricsAddress(config.daemon.metricsAddress, pids, scene),
    ])),
    ...(await guarded("temporary files", scene, async () => [await judgeTemporaryDirectory(env, databases, scene)])),
  ];
}

interface Examined {
  readonly report: DatabaseReport;
  /** Of the daemon that follows it; null: nobody does, or it is not known. */
  readonly pid: number | null;
}

interface DatabaseInputs extends DoctorInputs {
  readonly replicators: readonly OpenedBy[];
  readonly sameFile: readonly string[];
}

async function examineDatabase(database: DatabaseConfig, inputs: DatabaseInputs, scene: Scene): Promise<Examined> {
  const { name, path } = database;
  const local = await examineLocally(database, inputs, scene);
  const key = await lookAtConfiguredKey(database, scene);
  const place = { name, path: local.look?.path ?? null, sizeBytes: local.look?.info?.size ?? 0 };
  const asked = await Promise.all(
    database.backends.map((backend) => examineDestination(backend, { database, place, key, open: inputs.open }, scene)),
  );
  const listed = asked.flatMap(({ listed }) => (listed === null ? [] : [listed]));
  const agreement = await guarded("destinations agree", scene, () =>
    judgeAgreement(
      { database: name, listed, key, acceptPlaintext: acceptsPlaintext(database), isFollowed: local.isFollowed },
      scene,
    ),
  );
  return {
    report: {
      name,
      path,
      checks: [...local.checks, ...key.checks, ...agreement],
      destinations: asked.map(({ report }) => report),
    },
    pid: local.pid,
  };
}

interface LocalExamination {
  readonly look: DatabaseLook | null;
  readonly checks: readonly Check[];
  readonly isFollowed: boolean;
  readonly pid: number | null;
}

/** The database and what stands beside it. */
async function examineLocally(
  database: DatabaseConfig,
  { replicators, sameFile }: DatabaseInputs,
  scene: Scene,
): Promise<LocalExamination> {
  const { name } = database;
  const { nowMs } = scene;
  const looked = await lookWithin(database, scene);
  if ("check" in looked) return { look: null, checks: [looked.check], isFollowed: false, pid: null };
  const { look } = looked;
  const { path } = look;
  const lock = await guardedValue("instance lock", scene, {
    look: () => judgeLock(path, sameFile),
    instead: (broken): Awaited<ReturnType<typeof judgeLock>> => ({ holder: null, checks: [broken] }),
  });
  const isFollowed = lock.holder !== null;
  const checks = [
    judgeDatabase(look),
    ...judgeWalMode(look, database),
    ...judgeWal(look, database, { isFollowed }),
    ...(await guarded("permissions", scene, () => judgePermissions(look, scene))),
    ...(await guarded("service paths", scene, async () =>
      judgeServicePaths(scene.unit, { writable: [dirname(path)], readable: await keyPaths(database) }),
    )),
    ...(await guarded("file system", scene, () => judgeDatabaseDisk(look, database, scene))),
    ...(await guarded("state directory", scene, () => judgeStateDirectory({ path, name }, scene))),
    ...lock.checks,
    ...(await guarded("status", scene, async () => [await judgeStatus(database, { nowMs, isFollowed })])),
    ...(await guarded("other replicators", scene, async () =>
      judgeOtherReplicators(await findOtherReplicators(path, look.firstPage, replicators)),
    )),
  ];
  return { look, checks, isFollowed, pid: lock.holder?.pid ?? null };
}

async function keyPaths({ encryption }: DatabaseConfig): Promise<readonly string[]> {
  if (encryption.mode === "none") return [];
  return [await realpath(encryption.keyFile).catch(() => encryption.keyFile)];
}

/** Nothing more can be said of a database whose directory is not there, or closed to us. */
async function lookWithin(
  { path: configured }: DatabaseConfig,
  { deadlineMs, signal }: Scene,
): Promise<{ readonly look: DatabaseLook } | { readonly check: Check }> {
  try {
    return await withinDeadline({ ms: deadlineMs, what: `${configured} was looked at`, signal }, async () => ({
      look: await lookAtDatabase(await resolveDatabasePath(configured)),
    }));
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof BakeliteError && error.code === "not-found") {
      const message = `the directory of ${configured} does not exist yet; the daemon waits for it`;
      return { check: warn("database", message, error.hint ?? "correct `path` in the configuration") };
    }
    return { check: brokenCheck("database", error) };
  }
}

async function lookAtConfiguredKey(database: DatabaseConfig, scene: Scene): Promise<KeyLook> {
  const directories = database.backends.flatMap((backend) => (backend.type === "file" ? [backend.path] : []));
  return await guardedValue("key file", scene, {
    look: () => lookAtKey(database.encryption, directories, scene),
    instead: (broken): KeyLook => ({ sealKey: null, ring: emptyKeyRing, isLost: true, checks: [broken] }),
  });
}

interface DestinationInputs {
  readonly database: DatabaseConfig;
  readonly place: { readonly name: string; readonly path: string | null; readonly sizeBytes: number };
  readonly key: KeyLook;
  readonly open: DoctorInputs["open"];
}

async function examineDestination(
  config: BackendConfig,
  { database, place, key, open = openDestination }: DestinationInputs,
  scene: Scene,
): Promise<{ readonly report: DestinationReport; readonly listed: ListedDestination | null }> {
  const { type, async } = config;
  const checks: Check[] = [];
  if (config.type === "file")
    checks.push(...(await guarded("directory", scene, () => judgeDirectory(config, place, scene))));
  checks.push(...(await guarded("credentials", scene, () => judgeCredentials(config, scene))));
  const opened = openAsked(config, open);
  if ("check" in opened)
    return { report: { location: locationOf(config), type, async, checks: [...checks, opened.check] }, listed: null };
  const { backend } = opened;
  const asked = { backend, database: database.name, key, acceptPlaintext: acceptsPlaintext(database) };
  // It keeps deadlines by itself: a long listing is none that hangs.
  const answer = await orInstead(scene.signal, {
    look: () => askDestination(asked, scene),
    instead: (error): Answer => ({ objects: null, checks: [brokenCheck("reachable", error)] }),
  });
  return {
    report: { location: backend.location, type, async, checks: [...checks, ...answer.checks] },
    listed: answer.objects === null ? null : { backend, async, objects: answer.objects },
  };
}

function openAsked(
  config: BackendConfig,
  open: (config: BackendConfig) => Backend,
): { readonly backend: Backend } | { readonly check: Check } {
  try {
    // What fails is told at once: whoever runs doctor can run it again.
    return { backend: open({ ...config, retries: 0 }) };
  } catch (error) {
    return { check: brokenCheck("reachable", error) };
  }
}

/** As `loadKeys` has it: without a key there is nothing but plaintext to accept. */
function acceptsPlaintext({ encryption }: DatabaseConfig): boolean {
  return encryption.mode === "none" || encryption.acceptPlaintext;
}

/** Other databases of the configuration that lead to the same file, by name. */
async function findSameFiles(
  databases: readonly DatabaseConfig[],
  { deadlineMs, signal }: Scene,
): Promise<ReadonlyMap<string, readonly string[]>> {
  const paths = await Promise.all(
    databases.map(async ({ name, path }) => {
      const what = `${path} was looked at`;
      const real = await withinDeadline({ ms: deadlineMs, what, signal }, () => resolveDatabasePath(path)).catch(
        () => path,
      );
      return { name, real };
    }),
  );
  const byPath = Map.groupBy(paths, ({ real }) => real);
  return new Map(
    paths.map(({ name, real }) => [
      name,
      (byPath.get(real) ?? []).map((other) => other.name).filter((other) => other !== name),
    ]),
  );
}

/** The checks that `look` makes, within the deadline; what it throws is a check that failed. Rejects only when interrupted. */
async function guarded(
  check: CheckName,
  scene: Scene,
  look: () => Promise<readonly Check[]>,
): Promise<readonly Check[]> {
  return await guardedValue(check, scene, { look, instead: (broken): readonly Check[] => [broken] });
}

/** As `guarded`, of whatever `look` gives. */
async function guardedValue<T>(
  check: CheckName,
  scene: Scene,
  { look, instead }: { readonly look: () => Promise<T>; readonly instead: (broken: Check) => T },
): Promise<T> {
  const { deadlineMs, signal } = scene;
  return await orInstead(signal, {
    look: () => withinDeadline({ ms: deadlineMs, what: "it was looked at", signal }, look),
    instead: (error) => instead(brokenCheck(check, error)),
  });
}

/** What `look` gives, or what stands for its failure. */
async function orInstead<T>(
  signal: AbortSignal,
  { look, instead }: { readonly look: () => Promise<T>; readonly instead: (error: unknown) => T },
): Promise<T> {
  try {
    return await look();
  } catch (error) {
    signal.throwIfAborted();
    return instead(error);
  }
}

function brokenCheck(check: CheckName, error: unknown): Check {
  const hint = error instanceof BakeliteError ? error.hint : undefined;
  return fail(
    check,
    describeForCheck(error),
    hint ?? "run doctor as root, or with --verbose and report what it prints",
  );
}
