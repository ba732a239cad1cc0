import { readdir, realpath } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { BackendConfig, FileBackendConfig } from "../config/types.ts";
import { MAX_HEADER_BYTES, parseHeader } from "../format/header.ts";
import { PLAINTEXT_SEAL } from "../format/names.ts";
import { CatalogBuilder, keyOf, type ReplicaObject } from "../replica/catalog.ts";
import { untilAborted } from "../storage/abort.ts";
import type { Backend, Diagnosis } from "../storage/backend.ts";
import { formatByteSize } from "../util/byte-sizes.ts";
import { formatDuration } from "../util/durations.ts";
import { BakeliteError } from "../util/errors.ts";
import { plural } from "../util/plural.ts";
import { formatAgo } from "../util/timestamps.ts";
import { ENTER, findObstacle, READ, WRITE } from "./doctor-access.ts";
import { noAnswer, withinDeadline } from "./doctor-deadline.ts";
import { isWithin, kindOf, nearestExisting, shellWord, statOrNull } from "./doctor-files.ts";
import type { KeyLook } from "./doctor-key.ts";
import { lookAtFileSystem } from "./doctor-mounts.ts";
import { type Check, describeForCheck, fail, pass, warn } from "./doctor-report.ts";
import type { Scene } from "./doctor-scene.ts";
import { judgeServicePaths } from "./doctor-service.ts";

/** A destination of the configuration as a person knows it, without credentials; as `Backend.location` has it. */
export function locationOf(config: BackendConfig): string {
  const under = (...parts: readonly string[]) => parts.filter((part) => part !== "").join("/");
  switch (config.type) {
    case "file":
      return config.path;
    case "s3":
      return `s3://${under(config.bucket, config.prefix)}`;
    case "gcs":
      return `gs://${under(config.bucket, config.prefix)}`;
    case "azure":
      return `azure://${under(config.account, config.container, config.prefix)}`;
    case "sftp":
      return `sftp://${config.user}@${config.host}:${config.port}/${config.path.replace(/^\//, "")}`;
  }
}

/** What is known of the database that is to be stored. */
export interface DatabasePlace {
  readonly name: string;
  /** Links followed; null where its directory does not exist. */
  readonly path: string | null;
  /** 0 when there is none yet. */
  readonly sizeBytes: number;
}

/** The directory of a destination on this host: whether the daemon can store there, and whether it should. */
export async function judgeDirectory(
  { path: configured }: FileBackendConfig,
  database: DatabasePlace,
  scene: Scene,
): Promise<readonly Check[]> {
  const existing = await nearestExisting(configured);
  const info = await statOrNull(existing);
  if (info === null || (existing !== configured && existing !== dirname(configured)))
    return [
      fail(
        "directory",
        `neither ${configured} nor the folder above it exists`,
        `mount the disk that should hold it, or create ${dirname(configured)}`,
      ),
    ];
  if (!info.isDirectory())
    return [fail("directory", `${existing} is ${kindOf(info)}, not a directory`, "correct the backend's `path`")];
  // Where it is to be made, its folder is what counts.
  const real = await realpath(existing);
  const target = existing === configured ? real : join(real, configured.slice(existing.length));
  const refusals = await refusalsIn(real, database.name, scene);
  const made = existing === configured ? "is there" : "will be made by the first backup";
  const allowed = scene.user === null ? "" : `, and ${scene.user.name} may write to it`;
  return [
    ...(refusals.length > 0 ? refusals : [pass("directory", `it ${made}${allowed}`)]),
    ...judgeNesting(target, database),
    ...judgeServicePaths(scene.unit, { writable: [target], readable: [] }),
    ...(await judgeDisk(real, info.dev, database, scene)),
  ];
}

/** The directory, and those in it that the daemon will store to: root may have made some of them. */
async function refusalsIn(directory: string, name: string, { user, people }: Scene): Promise<readonly Check[]> {
  if (user === null) return [];
  const own = join(directory, name);
  const entries = await readdir(own, { withFileTypes: true }).catch(() => []);
  const below = entries.filter((entry) => entry.isDirectory()).map((entry) => join(own, entry.name));
  const hasOwn = (await statOrNull(own).catch(() => null)) !== null;
  for (const path of [directory, ...(hasOwn ? [own] : []), ...below]) {
    const obstacle = await findObstacle(user, people, { path, wanted: READ | WRITE | ENTER });
    if (obstacle !== null)
      return [fail("directory", obstacle, `run: chown -R ${shellWord(user.name)} ${shellWord(path)}`)];
  }
  return [];
}

function judgeNesting(directory: string, { path }: DatabasePlace): readonly Check[] {
  if (path === null) return [];
  if (isWithin(directory, join(dirname(path), ".bakelite")))
    return [fail("directory", "it is inside .bakelite/, which is bakelite's own", "give the backend another `path`")];
  if (isWithin(directory, dirname(path)))
    return [
      warn(
        "directory",
        "it is inside the directory of the database: what removes or moves that takes the backups along",
        "give the backend a `path` elsewhere, best on another disk",
      ),
    ];
  return [];
}

/** Below this nothing can be stored to speak of. */
const LEAST_FREE_BYTES = 1024 * 1024;

async function judgeDisk(
  path: string,
  device: number,
  database: DatabasePlace,
  { mounts }: Scene,
): Promise<readonly Check[]> {
  const { type, readOnly, freeBytes, freeFiles } = await lookAtFileSystem(path, mounts);
  const checks: Check[] = [];
  if (readOnly)
    checks.push(
      fail("file system", `${type ?? "it"} is mounted read-only`, "mount it read-write; `dmesg` may say why it is not"),
    );
  else if (type === "tmpfs" || type === "ramfs")
    checks.push(warn("file system", `${type}: it is in memory, and gone when the machine stops`, "store on a disk"));
  else checks.push(pass("file system", type ?? "its kind cannot be told here"));
  checks.push(judgeDestinationRoom({ freeBytes, freeFiles, databaseBytes: database.sizeBytes }));
  if (database.path === null) return checks;
  const other = await statOrNull(await nearestExisting(dirname(database.path)));
  checks.push(
    other?.dev === device
      ? warn(
          "separate disk",
          "it is on the same file system as the database: one disk that fails takes both",
          "add a destination on another disk or another machine",
        )
      : pass("separate disk", "it is on another file system than the database"),
  );
  return checks;
}

/** Pure. */
export function judgeDestinationRoom(room: {
  readonly freeBytes: number;
  readonly freeFiles: number | null;
  readonly databaseBytes: number;
}): Check {
  const free = `${formatByteSize(room.freeBytes)} free`;
  if (room.freeFiles === 0)
    return fail("disk space", "no file can be made any more: the inodes are used up", "remove files there (`df -i`)");
  if (room.freeBytes < LEAST_FREE_BYTES)
    return fail("disk space", free, "free space there, or keep less with `retention` or `max_total_size`");
  if (room.freeBytes < room.databaseBytes)
    return warn(
      "disk space",
      `${free}, less than the database's ${formatByteSize(room.databaseBytes)}, which a full backup may take`,
      "free space there, or keep less with `retention` or `max_total_size`",
    );
  return pass("disk space", free);
}

/** A destination and how to ask it. */
export interface AskedDestination {
  readonly backend: Backend;
  readonly database: string;
  readonly key: KeyLook;
  readonly acceptPlaintext: boolean;
}

export interface Answer {
  /** All that is stored under a name of ours; null: it could not be listed. */
  readonly objects: readonly ReplicaObject[] | null;
  readonly checks: readonly Check[];
}

/** Asks a destination without storing anything. Rejects only when the whole run is interrupted. */
export async function askDestination(asked: AskedDestination, scene: Scene): Promise<Answer> {
  const listing = await list(asked, scene);
  if (listing.kind === "failed") return { objects: null, checks: [listing.check] };
  const { objects } = listing;
  const newest = newestOf(objects);
  const checks: Check[] = [listing.check];
  if (newest !== null) {
    checks.push(await judgeFormat(asked, newest, scene));
    checks.push(judgeSeal(asked, objects));
    checks.push(judgeTimes(objects, scene.nowMs));
  }
  checks.push(...(await diagnose(asked.backend, scene)));
  return { objects, checks };
}

type Listing =
  | { readonly kind: "failed"; readonly check: Check }
  | { readonly kind: "listed"; readonly objects: readonly ReplicaObject[]; readonly check: Check };

/** So many deadlines for a whole listing, of which each part that comes has one for itself. */
const LISTING_DEADLINES = 6;
const LOOK_AT_CLOCK_EVERY = 1000;

async function list({ backend, database }: AskedDestination, { deadlineMs, signal }: Scene): Promise<Listing> {
  const catalog = new CatalogBuilder(database);
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(noAnswer(deadlineMs, "it was listed")), deadlineMs);
  const both = AbortSignal.any([signal, late.signal]);
  const endMs = performance.now() + LISTING_DEADLINES * deadlineMs;
  let count = 0;
  try {
    for await (const stored of untilAborted(backend.list(`${database}/`, { signal: both }), both)) {
      catalog.add(0, stored);
      timer.refresh();
      if (++count % LOOK_AT_CLOCK_EVERY === 0 && performance.now() > endMs)
        return { kind: "failed", check: slowListing(count, deadlineMs) };
    }
  } catch (error) {
    return { kind: "failed", check: failure("reachable", error, signal) };
  } finally {
    clearTimeout(timer);
  }
  const { fulls, changeSets } = catalog.build();
  const what = count === 0 ? "nothing is stored for this database yet" : `${plural(count, "object")} of this database`;
  const check = pass("reachable", `it answers and can be listed: ${what}`);
  return { kind: "listed", objects: [...fulls, ...changeSets], check };
}

function slowListing(count: number, deadlineMs: number): Check {
  const seconds = (LISTING_DEADLINES * deadlineMs) / 1000;
  return warn(
    "reachable",
    `it answers, but ${count} objects took more than ${seconds} s to list, so what is stored was not looked at`,
    "run `bakelite verify`, which takes its time; let compaction or retention leave fewer objects",
  );
}

/** The object that leads farthest; of those that lead equally far the one that was stored last. */
export function newestOf(objects: readonly ReplicaObject[]): ReplicaObject | null {
  let newest: ReplicaObject | null = null;
  for (const object of objects)
    if (
      newest === null ||
      object.last > newest.last ||
      (object.last === newest.last && object.modifiedMs > newest.modifiedMs)
    )
      newest = object;
  return newest;
}

/** The newest object's header says which format it is written in; no key is needed for that. */
async function judgeFormat(
  { backend, database }: AskedDestination,
  newest: ReplicaObject,
  { deadlineMs, signal }: Scene,
): Promise<Check> {
  const key = keyOf(database, newest);
  try {
    const bytes = await withinDeadline({ ms: deadlineMs, what: `${key} was read`, signal }, async (inTime) => {
      const stream = await backend.get(key, { range: { start: 0, end: MAX_HEADER_BYTES }, signal: inTime });
      return stream === null ? null : Buffer.concat(await Array.fromAsync(stream));
    });
    if (bytes === null)
      return warn(
        "storage format",
        `${key} was gone when it was read`,
        "run doctor again; a compaction may have replaced it",
      );
    const { header } = parseHeader(bytes, `${backend.location}/${key}`);
    if (header.database !== database)
      return fail(
        "storage format",
        `${key} belongs to the database ${header.database}`,
        "give this database another `name`, or the backend another place",
      );
    return pass("storage format", `the newest object, state ${newest.last}, was written by ${header.writer}`);
  } catch (error) {
    return failure("storage format", error, signal);
  }
}

/** Whether what is stored goes with the configured key. Pure. */
function judgeSeal({ key, acceptPlaintext }: AskedDestination, objects: readonly ReplicaObject[]): Check {
  // As the daemon looks at it: what leads farthest, in whatever order it was stored.
  const newest = newestOf(objects)?.seal ?? PLAINTEXT_SEAL;
  if (key.isLost) {
    const sealed = newest === PLAINTEXT_SEAL ? "not encrypted" : `encrypted with the key ${newest}`;
    return fail(
      "encryption",
      `the newest objects are ${sealed}, and the configured key cannot be read`,
      "see `key file` above",
    );
  }
  const wanted = key.sealKey?.fingerprint ?? PLAINTEXT_SEAL;
  const others = objects.filter(({ seal }) => seal !== wanted).length;
  if (newest === wanted) {
    const how =
      wanted === PLAINTEXT_SEAL ? "not encrypted, as configured" : `encrypted with the configured key ${wanted}`;
    if (others === 0) return pass("encryption", how);
    const fix = "run `bakelite reencrypt` with the daemon stopped, so that all is stored in one way";
    return warn("encryption", `the newest objects are ${how}; ${plural(others, "older object")} otherwise`, fix);
  }
  if (key.sealKey === null)
    return fail(
      "encryption",
      `the newest objects are encrypted with the key ${newest}, and no key is configured`,
      "set key_file under [defaults.encryption] to the file that holds that key",
    );
  if (newest !== PLAINTEXT_SEAL)
    return fail(
      "encryption",
      `the newest objects are encrypted with the key ${newest}, and the configured one is ${wanted}`,
      "point key_file to the key that they were written with; to change keys see `bakelite reencrypt`",
    );
  if (acceptPlaintext)
    return warn(
      "encryption",
      "the newest objects are not encrypted yet, which accept_plaintext allows",
      "run `bakelite reencrypt` with the daemon stopped, then remove accept_plaintext",
    );
  return fail(
    "encryption",
    "what is stored is not encrypted, and a key is configured",
    "run `bakelite reencrypt` with the daemon stopped, or set accept_plaintext = true until that is done",
  );
}

/** What the clocks of two machines may differ in. */
const CLOCK_TOLERANCE_MS = 60_000;

/** An object from the future: one of the two clocks is wrong. Pure. */
function judgeTimes(objects: readonly ReplicaObject[], nowMs: number): Check {
  const newestMs = Math.max(...objects.map(({ modifiedMs }) => modifiedMs));
  if (newestMs - nowMs <= CLOCK_TOLERANCE_MS)
    return pass("object times", `last stored to ${formatAgo(newestMs, nowMs)}`);
  return warn(
    "object times",
    `an object is dated ${formatDuration(newestMs - nowMs)} in the future: this host's clock is behind, or the destination's ahead`,
    "set both clocks by NTP (`timedatectl`): retention and grace periods go by them",
  );
}

/** What the backend itself knows to ask, such as versioning. */
async function diagnose(backend: Backend, { deadlineMs, signal }: Scene): Promise<readonly Check[]> {
  if (backend.diagnose === undefined) return [];
  try {
    const found = await withinDeadline(
      { ms: deadlineMs, what: "it was asked about itself", signal },
      async (inTime) => {
        return (await backend.diagnose?.({ signal: inTime })) ?? [];
      },
    );
    return found.map(checkOf);
  } catch (error) {
    return [failure("reachable", error, signal)];
  }
}

function checkOf({ check, level, message, hint }: Diagnosis): Check {
  if (level === "pass") return { check, level, message, fix: null };
  return { check, level, message, fix: hint ?? "see docs/doctor.md" };
}

/** The failure of a look as a check that failed. An interruption and a bug are thrown on. */
function failure(check: "reachable" | "storage format", error: unknown, signal: AbortSignal): Check {
  signal.throwIfAborted();
  if (!(error instanceof BakeliteError) || error.code === "internal") throw error;
  return fail(check, describeForCheck(error), error.hint ?? "see docs/troubleshooting.md");
}
