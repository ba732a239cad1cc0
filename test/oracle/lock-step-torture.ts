import { mkdir, readdir, readFile, rename, rm, statfs, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { keyOf } from "../../src/replica/catalog.ts";
import { Replica } from "../../src/replica/replica.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { FaultProxy } from "../faults/proxy.ts";
import { startRgw } from "../servers/rgw.ts";
import { newBucketName, S3Requests } from "../servers/s3-account.ts";
import { openS3, s3Table } from "../servers/s3-backends.ts";
import { type Random, seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import {
  configPathIn,
  type DaemonOptions,
  type DaemonProcess,
  type Program,
  runBakelite,
  type Settings,
  startDaemon,
} from "./daemon-process.ts";
import { Cast, rolesFor } from "./torture-cast.ts";
import { Restorer } from "./torture-restores.ts";

export interface LockStepOptions {
  readonly seed: number;
  readonly seconds: number;
  /** SIGKILLs of the daemon. */
  readonly kills: number;
  readonly writers: number;
  readonly program?: Program;
  /** With a real S3 server as one of the three; else there are directories only. */
  readonly s3: boolean;
  readonly signal?: AbortSignal;
  readonly tell?: (what: string) => void;
}

export interface LockStepReport {
  readonly seed: number;
  readonly commits: number;
  readonly kills: number;
  readonly ruins: Readonly<Record<string, number>>;
  readonly indexes: number;
  readonly objects: number;
  readonly restoredAlone: number;
  readonly repaired: number;
  readonly fullBackups: Readonly<Record<string, number>>;
}

/** What goes wrong with one destination. Those of `LASTING` go on until they are mended. */
type Ruin = "down" | "slow" | "full" | "wiped" | "loses objects" | "flips bits";

/** One destination, and what may be done to it. */
interface Site {
  readonly name: string;
  readonly table: Settings;
  readonly ruins: readonly Ruin[];
  open(): Backend;
  ruin(what: Ruin, random: Random): Promise<void>;
  mend(): Promise<void>;
  /** Something stored there was taken away or damaged, and no repair has been since. */
  isTampered: boolean;
}

const NAME = "app";
const SYNC_DEADLINE_MS = 60_000;
const LOOK_MARGIN_MS = 1000;
const MAX_RUIN_MS = 4000;

/**
 * Writers on one database, a daemon that ships it to three destinations and is killed again and again, while one destination after the
 * other is away, slow, full, wiped, loses objects or has bits flipped. Whenever the writers pause and the status says that
 * all is stored, each destination that is said to be in sync restores all of it by itself, and in the end, after a repair, all
 * three hold the same objects. Throws at the first thing that is wrong.
 */
export async function tortureLockStep(options: LockStepOptions): Promise<LockStepReport> {
  try {
    await using run = await LockStepRun.start(options);
    return await run.finish();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    throw new Error(`${message}\n(repeat with --destinations --seed ${options.seed})`, { cause: error });
  }
}

class LockStepRun implements AsyncDisposable {
  readonly #options: LockStepOptions;
  readonly #random: Random;
  readonly #resources: AsyncDisposableStack;
  readonly #folder: string;
  readonly #databasePath: string;
  readonly #cast: Cast;
  readonly #sites: readonly Site[];
  readonly #daemonOptions: DaemonOptions;
  readonly #daemons: DaemonProcess[] = [];
  readonly #ruinCounts: Record<string, number> = {};
  #restoredAlone = 0;
  #kills = 0;

  private constructor(
    options: LockStepOptions,
    parts: {
      resources: AsyncDisposableStack;
      folder: string;
      cast: Cast;
      sites: readonly Site[];
      databasePath: string;
    },
  ) {
    this.#options = options;
    this.#random = seededRandom(options.seed).fork("lock-step");
    this.#resources = parts.resources;
    this.#folder = parts.folder;
    this.#databasePath = parts.databasePath;
    this.#cast = parts.cast;
    this.#sites = parts.sites;
    this.#daemonOptions = {
      configPath: configPathIn(parts.folder),
      databases: [
        { name: NAME, path: parts.databasePath, replicas: [], destinations: parts.sites.map(({ table }) => table) },
      ],
      settings: { debounce: "30ms", max_batch_delay: "100ms", max_segments_per_snapshot: 40 },
      logLevel: "debug",
      program: options.program ?? "source",
    };
  }

  static async start(options: LockStepOptions): Promise<LockStepRun> {
    await using resources = new AsyncDisposableStack();
    const directory = resources.use(await temporaryDirectory("lock-step"));
    const folder = directory.path;
    const databasePath = join(folder, "live", "app.db");
    await mkdir(join(folder, "live"));
    const sites = [
      directorySite("first", join(folder, "first"), ["down"]),
      options.s3
        ? await s3Site(resources, options.seed)
        : directorySite("second", join(folder, "second"), ["down", "down"]),
      await diskSite(resources, join(folder, "disk")),
    ];
    const random = seededRandom(options.seed).fork("cast");
    const roles = rolesFor(options.writers);
    const cast = resources.use(
      await Cast.start({ database: databasePath, roles, random, common: {}, ballastBytes: 6 * 1024 * 1024 }),
    );
    return new LockStepRun(options, { resources: resources.move(), folder, cast, sites, databasePath });
  }

  get #daemon(): DaemonProcess {
    const daemon = this.#daemons.at(-1);
    if (daemon === undefined) throw new Error("no daemon was started");
    return daemon;
  }

  async finish(): Promise<LockStepReport> {
    const { seconds, signal } = this.#options;
    await this.#startDaemon();
    const endMs = performance.now() + seconds * 1000;
    const schedule = this.#schedule();
    for (const { what, atMs } of schedule) {
      const dueMs = endMs - seconds * 1000 + atMs;
      while (performance.now() < dueMs) {
        signal?.throwIfAborted();
        await this.#cast.check();
        this.#daemon.checkRunning();
        await Bun.sleep(Math.min(50, Math.max(0, dueMs - performance.now())));
      }
      await this.#disturb(what);
    }
    return await this.#judge();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const daemon of this.#daemons) await daemon[Symbol.asyncDispose]();
    for (const site of this.#sites) await site.mend();
    // For whoever keeps the folder to look into a failure.
    const log = this.#daemons.flatMap(({ log: lines }) => lines).map((line) => `${JSON.stringify(line)}\n`);
    await writeFile(join(this.#folder, "daemon.log"), log.join(""));
    await this.#resources[Symbol.asyncDispose]();
  }

  #schedule() {
    const { seconds, kills } = this.#options;
    const ruins = Math.max(3, Math.ceil(seconds / 4));
    const all = [
      ...Array.from({ length: kills }, () => "kill" as const),
      ...Array.from({ length: ruins }, () => "ruin" as const),
      ...Array.from({ length: Math.ceil(seconds / 15) }, () => "calm" as const),
    ];
    return all.map((what) => ({ what, atMs: this.#random.next() * seconds * 1000 })).sort((a, b) => a.atMs - b.atMs);
  }

  async #disturb(what: "kill" | "ruin" | "calm"): Promise<void> {
    const random = this.#random;
    switch (what) {
      case "kill":
        this.#options.tell?.("kill");
        await this.#daemon.kill();
        this.#kills++;
        await Bun.sleep(random.integer(0, 500));
        return await this.#startDaemon();
      case "ruin": {
        const site = random.pick(this.#sites);
        const ruin = random.pick(site.ruins);
        this.#options.tell?.(`${site.name}: ${ruin}`);
        this.#ruinCounts[ruin] = (this.#ruinCounts[ruin] ?? 0) + 1;
        await site.ruin(ruin, random);
        // Now and then it lasts over what comes next.
        if (random.chance(0.5)) {
          await Bun.sleep(random.integer(200, MAX_RUIN_MS));
          await site.mend();
        }
        return;
      }
      case "calm":
        this.#options.tell?.("calm");
        await this.#calm(false);
        return await this.#cast.resume();
    }
  }

  async #startDaemon(): Promise<void> {
    this.#daemons.push(await startDaemon(this.#daemonOptions));
  }

  /** The writers pause. Whatever the status then calls in sync restores all that was committed, by itself. */
  async #calm(allInSync: boolean): Promise<number> {
    for (const site of this.#sites) await site.mend();
    await this.#cast.pause();
    const pausedMs = Date.now();
    const floorN = this.#cast.acks.at(-1)?.n ?? 0;
    const status = await this.#daemon.untilStatus(
      ({ state, lag_seconds, last_synced_at, destinations, full_backup_in_progress }) =>
        state === "live" &&
        lag_seconds === 0 &&
        full_backup_in_progress === null &&
        Date.parse(last_synced_at ?? "") >= pausedMs + LOOK_MARGIN_MS &&
        (!allInSync || destinations.every((each) => each.state === "in sync")),
      { what: "everything to be stored", deadlineMs: SYNC_DEADLINE_MS, pollMs: 100 },
    );
    for (const [i, site] of this.#sites.entries())
      if (status.destinations[i]?.state === "in sync" && !site.isTampered) await this.#restoreAlone(site, floorN);
    return floorN;
  }

  async #restoreAlone(site: Site, floorN: number): Promise<number> {
    const restorer = new Restorer({
      openReplica: () => site.open(),
      database: NAME,
      databasePath: this.#databasePath,
      folder: this.#folder,
      sealKey: null,
      acks: () => this.#cast.acks,
    });
    try {
      const restored = await restorer.restore({ kind: "latest" }, { floorN });
      if (restored === null) throw new Error("nothing is restorable");
      this.#restoredAlone++;
      return restored.index;
    } catch (error) {
      throw new Error(
        `${site.name} by itself: ${error instanceof Error ? error.message : String(error)}\n${this.#daemon.tail}`,
        {
          cause: error,
        },
      );
    }
  }

  async #judge(): Promise<LockStepReport> {
    const { tell, program = "source" } = this.#options;
    tell?.("the end");
    for (const site of this.#sites) await site.mend();
    // What was taken away behind its back shows at the next start.
    await this.#daemon.kill();
    await this.#startDaemon();
    const floorN = await this.#calm(true);
    await this.#daemon.stop();
    const { configPath } = this.#daemonOptions;
    const repair = await runBakelite(program, ["repair", "--config", configPath, "--json"]);
    if (repair.status !== 0)
      throw new Error(`\`bakelite repair\` ended with ${repair.status}: ${repair.stdout}${repair.stderr}`);
    const indexes = new Set<number>();
    for (const site of this.#sites) indexes.add(await this.#restoreAlone(site, floorN));
    if (indexes.size !== 1) throw new Error(`the newest states differ: ${[...indexes].join(", ")}`);
    const objects = await this.#compareSites();
    await this.#cast.resume();
    await this.#cast.stop();
    const lines = this.#daemons.flatMap(({ log }) => log);
    const begun = lines.filter(({ message }) => message === "full backup begins").map((line) => String(line["reason"]));
    return {
      seed: this.#options.seed,
      commits: this.#cast.acks.length,
      kills: this.#kills,
      ruins: this.#ruinCounts,
      indexes: [...indexes][0] ?? 0,
      objects,
      restoredAlone: this.#restoredAlone,
      repaired: (repair.stdout.match(/"action"/g) ?? []).length,
      fullBackups: Object.fromEntries(
        Map.groupBy(begun, (reason) => reason)
          .entries()
          .map(([reason, all]) => [reason, all.length]),
      ),
    };
  }

  /** Every object that leads to some state is the same everywhere; gives how many there are. */
  async #compareSites(): Promise<number> {
    const backends = this.#sites.map((site) => site.open());
    const replica = await Replica.open({
      database: NAME,
      backends,
      keys: emptyKeyRing,
      seal: PLAINTEXT_SEAL,
      acceptPlaintext: true,
    });
    const { fulls, changeSets } = replica.catalog;
    await replica.trailers.load([...fulls, ...changeSets]);
    const useless = new Set([...replica.graph.unreached, ...replica.graph.forks].map((object) => keyOf(NAME, object)));
    const copies = Map.groupBy([...fulls, ...changeSets], (object) => keyOf(NAME, object));
    let count = 0;
    for (const key of copies.keys()) {
      if (useless.has(key)) continue;
      count++;
      const hashes = await Promise.all(backends.map((backend) => hashOf(backend, key)));
      if (new Set(hashes).size !== 1) throw new Error(`${key} is not the same everywhere: ${JSON.stringify(hashes)}`);
    }
    return count;
  }
}

async function hashOf(backend: Backend, key: string): Promise<string> {
  const stream = await backend.get(key);
  if (stream === null) return "missing";
  const hash = new Bun.CryptoHasher("sha256");
  for await (const piece of stream) hash.update(piece);
  return hash.digest("hex").slice(0, 16);
}

function directorySite(name: string, path: string, ruins: readonly Ruin[]): Site {
  let isAway = false;
  const objects = async () =>
    (await readdir(path, { recursive: true, withFileTypes: true }).catch(() => []))
      .filter((entry) => entry.isFile() && !entry.name.startsWith(".tmp-"))
      .map((entry) => join(entry.parentPath, entry.name));
  return {
    name,
    table: { type: "file", path },
    ruins,
    isTampered: false,
    open: () => new FileBackend({ path }),
    async ruin(what, random) {
      if (isAway) return;
      switch (what) {
        case "full":
        case "slow":
          throw new Error(`a directory cannot be ${what}`);
        case "down":
          // A file where the directory was: every call fails.
          await mkdir(path, { recursive: true });
          await rename(path, `${path}.away`);
          await writeFile(path, "");
          isAway = true;
          return;
        case "wiped":
          this.isTampered = true;
          for (const file of await objects()) await rm(file, { force: true });
          return;
        case "loses objects":
          this.isTampered = true;
          for (const file of await objects()) if (random.chance(0.2)) await rm(file, { force: true });
          return;
        case "flips bits": {
          this.isTampered = true;
          const files = (await objects()).filter((file) => /\/(?:full|L\d)\//.test(file));
          if (files.length === 0) return;
          const file = random.pick(files);
          const bytes = await readFile(file).catch(() => null);
          if (bytes === null || bytes.length === 0) return;
          const at = random.integer(0, bytes.length - 1);
          bytes[at] = (bytes[at] ?? 0) ^ (1 << random.integer(0, 7));
          await writeFile(file, bytes);
        }
      }
    },
    async mend() {
      if (!isAway) return;
      await rm(path, { recursive: true, force: true });
      await rename(`${path}.away`, path);
      isAway = false;
    },
  };
}

/** A directory on a disk of its own, which may be full; where none can be mounted, it never is. */
async function diskSite(resources: AsyncDisposableStack, mountPath: string): Promise<Site> {
  await mkdir(mountPath);
  const hasDisk = await succeeds("mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", mountPath);
  if (hasDisk) resources.defer(async () => void (await succeeds("umount", mountPath)));
  const ruins = ["down", "wiped", "loses objects", "flips bits"] as const;
  const site = directorySite("third", join(mountPath, "third"), hasDisk ? [...ruins, "full", "full"] : ruins);
  return {
    ...site,
    async ruin(what, random) {
      if (what !== "full") return await site.ruin.call(this, what, random);
      const { blocks, bfree, bsize } = await statfs(mountPath);
      await succeeds("mount", "-o", `remount,size=${(blocks - bfree) * bsize}`, mountPath);
    },
    async mend() {
      if (hasDisk) await succeeds("mount", "-o", "remount,size=1g", mountPath);
      await site.mend();
    },
  };
}

async function succeeds(...command: readonly string[]): Promise<boolean> {
  const child = Bun.spawn([...command], { stdin: "ignore", stdout: "ignore", stderr: "ignore" });
  return (await child.exited) === 0;
}

/** Through a proxy, which may go away or be slow. */
async function s3Site(resources: AsyncDisposableStack, seed: number): Promise<Site> {
  const rgw = resources.use(await startRgw());
  const proxy = resources.use(
    await FaultProxy.start({ targetPort: rgw.port, seed: seededRandom(seed).fork("proxy").seed }),
  );
  const [requests, bucket] = [new S3Requests(rgw.account), newBucketName()];
  await requests.createBucket(bucket);
  const target = (endpoint: string) => ({ account: { ...rgw.account, endpoint }, bucket, prefix: "some/prefix" });
  let isAway = false;
  return {
    name: "s3",
    table: s3Table(target(proxy.url), { timeout: "3s", retries: 2 }),
    ruins: ["down", "slow"],
    isTampered: false,
    open: () => openS3(target(rgw.account.endpoint)),
    async ruin(what, random) {
      if (what === "slow") proxy.rates = { slow: 0.8, "error-503": 0.1 };
      else if (!isAway) {
        isAway = true;
        await proxy.beginOutage(random.pick(["refuse", "hang"] as const));
      }
    },
    async mend() {
      proxy.rates = {};
      if (!isAway) return;
      isAway = false;
      await proxy.endOutage();
    },
  };
}
