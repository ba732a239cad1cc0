import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { loadConfig } from "../../src/config/load.ts";
import type { DatabaseConfig } from "../../src/config/types.ts";
import { Upkeep, type UpkeepTarget, type UpkeepTimes } from "../../src/daemon/upkeep.ts";
import type { LogFields, Logger } from "../../src/util/logger.ts";
import { type AgedOptions, age, agedReplica, hashTree, objectsIn, POLICY } from "../cli/aged-replica.ts";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

const isRoot = process.geteuid?.() === 0;
const MINUTE_MS = 60_000;
const TIMES: UpkeepTimes = {
  minIntervalMs: 5 * MINUTE_MS,
  maxIntervalMs: 60 * MINUTE_MS,
  changeSetCount: 64,
  lookMs: 1,
};
let directory: TemporaryDirectory;

setDefaultTimeout(60_000);

beforeAll(async () => {
  directory = await temporaryDirectory("upkeep");
});

afterAll(() => directory[Symbol.asyncDispose]());

interface Line {
  readonly level: string;
  readonly message: string;
  readonly fields: LogFields;
}

/** One database whose daemon is in the hands of the test: its clock, what it has shipped, and what it says. */
class Scene implements AsyncDisposable {
  readonly lines: Line[] = [];
  readonly store: string;
  readonly upkeep: Upkeep;
  readonly leaving = new AbortController();
  readonly #stop = new AbortController();
  readonly #ended: Promise<void>;
  /** What the next look sees. */
  monotonicMs = 0;
  /** How far the machine's clock was set ahead since the start. */
  clockAheadMs = 0;
  storedCount = 1;
  isShipping = true;
  config: DatabaseConfig;
  #looks = 0;

  constructor(config: DatabaseConfig, store: string, only?: "lock-step" | "mirrors") {
    this.config = config;
    this.store = store;
    const log = this.#logger();
    this.upkeep = new Upkeep({
      targets: () => this.#targets(log),
      times: TIMES,
      ...(only === undefined ? {} : { only }),
      stateDirectory: undefined,
      clock: { nowMs: () => Date.now() + this.clockAheadMs, monotonicMs: () => this.monotonicMs },
      log,
    });
    this.#ended = this.upkeep.run(this.#stop.signal);
  }

  get passes(): number {
    return this.lines.filter(({ message }) => message === "upkeep pass").length;
  }

  said(level: string): readonly string[] {
    return this.lines.filter((line) => line.level === level).map(({ message }) => message);
  }

  /** Waits until it has looked again, and has finished what it found to do. */
  async look(): Promise<void> {
    const wanted = this.#looks + 2;
    await eventually(() => this.#looks >= wanted, { what: "another look", pollMs: 1 });
  }

  /** A pass, whatever the schedule says of it. */
  async pass(): Promise<void> {
    const wanted = this.passes + 1;
    this.storedCount += 64;
    this.monotonicMs += 5 * MINUTE_MS;
    await eventually(() => this.passes >= wanted, { what: "a pass", explain: () => JSON.stringify(this.lines) });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#ended;
  }

  #targets(log: Logger): readonly UpkeepTarget[] {
    this.#looks++;
    return [
      {
        identity: this,
        config: this.config,
        log,
        stop: this.leaving.signal,
        isShipping: this.isShipping,
        storedCount: this.storedCount,
        fullBackups: () => [],
      },
    ];
  }

  #logger(): Logger {
    const hear =
      (level: string) =>
      (message: string, fields: LogFields = {}) => {
        this.lines.push({ level, message, fields });
      };
    const log: Logger = {
      error: hear("error"),
      warn: hear("warn"),
      info: hear("info"),
      debug: hear("debug"),
      child: () => log,
    };
    return log;
  }
}

let scenes = 0;
/** 100 states, 15 seconds apart, with full backups at 1, 40 and 80. */
async function scene(options: Partial<AgedOptions> = {}) {
  const shape = { states: 100, spacingMs: 15_000, fullEvery: 40, ...options };
  const replica = await agedReplica(directory, `scene${scenes++}`, shape);
  const [store = ""] = replica.stores;
  const configured = async () => {
    const [database] = (await loadConfig(replica.configPath, {})).databases;
    if (database === undefined) throw new Error("the configuration has a database");
    return database;
  };
  return { replica, store, configured, daemon: new Scene(await configured(), store) };
}

test("a pass is due five minutes after the start, then after 64 change-sets, or an hour with any", async () => {
  const { daemon } = await scene();
  await using _ = daemon;
  await daemon.look();
  daemon.monotonicMs = 5 * MINUTE_MS - 1;
  await daemon.look();
  expect(daemon.passes).toBe(0);
  daemon.monotonicMs = 5 * MINUTE_MS;
  await daemon.look();
  expect(daemon.passes).toBe(1);
  expect(daemon.said("debug")).toContain("merged change-sets");

  // It has merged something, so after an hour there may be more to do; then there is not.
  daemon.monotonicMs = 65 * MINUTE_MS;
  await daemon.look();
  expect(daemon.passes).toBe(2);
  daemon.monotonicMs = 300 * MINUTE_MS;
  await daemon.look();
  expect(daemon.passes).toBe(2);

  daemon.storedCount += 1;
  await daemon.look();
  expect(daemon.passes).toBe(3);
  daemon.storedCount += 64;
  daemon.monotonicMs = 305 * MINUTE_MS - 1;
  await daemon.look();
  expect(daemon.passes).toBe(3);
  daemon.monotonicMs = 305 * MINUTE_MS;
  await daemon.look();
  expect(daemon.passes).toBe(4);
  daemon.storedCount += 63;
  daemon.monotonicMs = 365 * MINUTE_MS - 1;
  await daemon.look();
  expect(daemon.passes).toBe(4);
});

test("nothing is done for a database that is not shipping, that has left, or whose policy asks for nothing", async () => {
  const { daemon, replica, store, configured } = await scene();
  await using _ = daemon;
  const before = hashTree(store);
  daemon.isShipping = false;
  daemon.monotonicMs = 5 * MINUTE_MS;
  await daemon.look();
  replica.configure("compaction_levels = []\ncompaction_keep = []\n");
  daemon.config = await configured();
  daemon.isShipping = true;
  await daemon.look();
  expect(daemon.passes).toBe(0);
  daemon.leaving.abort();
  replica.configure("");
  daemon.config = await configured();
  await daemon.look();
  expect(daemon.passes).toBe(0);
  expect(hashTree(store)).toBe(before);
});

test("nothing is deleted once the machine's clock has been set by a day or more, and the daemon says so once", async () => {
  const { daemon, store, replica, configured } = await scene();
  await using _ = daemon;
  replica.configure("max_backups = 1\n");
  daemon.config = await configured();
  daemon.clockAheadMs = 26 * 60 * MINUTE_MS;
  await daemon.pass();
  await daemon.pass();
  expect(objectsIn(store).filter((name) => name.startsWith("full/"))).toHaveLength(3);
  const warnings = daemon.lines.filter(({ level }) => level === "warn");
  expect(warnings).toMatchObject([
    { message: "nothing is deleted", fields: { error: expect.stringContaining("was set ahead by 1d") } },
  ]);
  // Set back in time.
  daemon.clockAheadMs = 0;
  await daemon.pass();
  expect(objectsIn(store).filter((name) => name.startsWith("full/"))).toHaveLength(1);
});

test("what goes is told with its reason, and what is silent is a pass without anything to do", async () => {
  const { daemon, store, replica, configured } = await scene();
  await using _ = daemon;
  replica.configure("max_backups = 1\n");
  daemon.config = await configured();
  await daemon.pass();
  expect(daemon.lines.filter(({ level }) => level === "info")).toEqual([
    {
      level: "info",
      message: "deleted what the policy gives up",
      fields: { destination: store, reason: "max_backups", objects: expect.any(Number), sizeBytes: expect.any(Number) },
    },
  ]);
  const oldest = Math.min(...objectsIn(store).map((name) => Number(/[/](\d{16})/.exec(name)?.[1])));
  expect(oldest).toBe(80);
  daemon.lines.length = 0;
  await daemon.pass();
  expect([...daemon.said("info"), ...daemon.said("warn")]).toEqual([]);
});

test("a limit that cannot be met is told once, and published until it is met", async () => {
  const { daemon, store, replica, configured } = await scene();
  await using _ = daemon;
  replica.configure('max_total_size = "1KiB"\n');
  daemon.config = await configured();
  await daemon.pass();
  await daemon.pass();
  expect(daemon.said("warn")).toEqual([expect.stringMatching(/^a limit cannot be met/)]);
  expect(daemon.upkeep.unmetLimits(daemon)).toEqual([
    { location: store, limit: "max_total_size", allowed: 1024, remaining: expect.any(Number) },
  ]);
  replica.configure('max_total_size = "1GiB"\n');
  daemon.config = await configured();
  await daemon.pass();
  expect(daemon.upkeep.unmetLimits(daemon)).toEqual([]);
});

test("a destination that does not let us delete is told once and left alone; merging goes on", async () => {
  const { daemon, store, replica, configured } = await scene();
  replica.configure("max_backups = 1\n");
  daemon.config = await configured();
  const folders = [`${store}/app/full`, `${store}/app/L0`];
  setAppendOnly(folders, true);
  try {
    await using _ = daemon;
    await daemon.pass();
    await daemon.pass();
    expect(daemon.said("warn")).toEqual([expect.stringMatching(/^the destination does not let us delete/)]);
  } finally {
    setAppendOnly(folders, false);
  }
  expect(objectsIn(store).filter((name) => name.startsWith("full/"))).toHaveLength(3);
  expect(objectsIn(store).some((name) => /^L[12]\//.test(name))).toBe(true);
});

function setAppendOnly(folders: readonly string[], on: boolean): void {
  for (const folder of folders) {
    const command = isRoot ? ["chattr", on ? "+a" : "-a", folder] : ["chmod", on ? "0555" : "0755", folder];
    if (Bun.spawnSync(command).exitCode !== 0) throw new Error(`cannot make ${folder} append-only`);
  }
}

test("an error is told once for each reason, and once more when it was gone in between", async () => {
  const { daemon, store, replica } = await scene();
  await using _ = daemon;
  const damaged = `${store}/app/L0/0000000000000024-0000000000000024.p`;
  const bytes = readFileSync(damaged);
  const spoilt = Buffer.from(bytes);
  spoilt[bytes.length >> 1] = (spoilt[bytes.length >> 1] ?? 0) ^ 1;
  writeFileSync(damaged, spoilt);
  await daemon.pass();
  await daemon.pass();
  const told = "cannot merge some change-sets; they stay as they are";
  expect(daemon.said("warn")).toEqual([told]);
  writeFileSync(damaged, bytes);
  age(store, replica.builder);
  await daemon.pass();
  expect(daemon.said("warn")).toEqual([told]);
});

test("a replica that cannot be read at all stops nothing", async () => {
  const { daemon, configured } = await scene({ sealed: true });
  await using _ = daemon;
  const { encryption } = await configured();
  if (encryption.mode !== "key-file") throw new Error("the scene is sealed");
  const key = readFileSync(encryption.keyFile);
  writeFileSync(encryption.keyFile, "no key");
  await daemon.pass();
  await daemon.pass();
  expect(daemon.said("warn")).toEqual(["cannot merge change-sets", "cannot delete what the policy gives up"]);
  writeFileSync(encryption.keyFile, key);
  await daemon.pass();
  expect(daemon.said("debug")).toContain("merged change-sets");
});

test("told to stop, a pass ends within a second, and what it did is whole", async () => {
  const { daemon, store } = await scene({ states: 1500, fullEvery: 400 });
  daemon.storedCount += 64;
  daemon.monotonicMs += 5 * MINUTE_MS;
  await eventually(() => daemon.said("debug").includes("merged change-sets"), { what: "the first merge", pollMs: 1 });
  const startMs = performance.now();
  await daemon[Symbol.asyncDispose]();
  expect(performance.now() - startMs).toBeLessThan(1_000);
  expect(daemon.passes).toBe(0);
  const merged = objectsIn(store).filter((name) => name.startsWith("L1/")).length;
  expect(merged).toBeLessThan(300);
  expect(daemon.said("warn")).toEqual([]);
});

test("mirrors are seen to apart: theirs is deleted by what they hold themselves, nothing is merged there, and no other waits for them", async () => {
  const { replica, configured } = await scene({ stores: ["first", "mirror"], spacingMs: 40_000 });
  const [first = "", mirror = ""] = replica.stores;
  replica.configure(`${POLICY}max_backups = 1\n`);
  const own = await configured();
  const config = { ...own, backends: own.backends.map((backend, i) => ({ ...backend, async: i === 1 })) };
  const before = hashTree(mirror);
  {
    await using lockStep = new Scene(config, first, "lock-step");
    await lockStep.pass();
    expect(objectsIn(first).filter((name) => name.startsWith("full/"))).toHaveLength(1);
    expect(objectsIn(first).some((name) => /^L[12]\//.test(name))).toBe(true);
    expect(hashTree(mirror)).toBe(before);
  }
  // A wiped primary is no reason to keep more than the policy says at the mirror, nor less.
  await rm(first, { recursive: true });
  await using mirrors = new Scene(config, mirror, "mirrors");
  await mirrors.pass();
  expect(objectsIn(mirror).filter((name) => name.startsWith("full/"))).toHaveLength(1);
  expect(objectsIn(mirror).some((name) => /^L[12]\//.test(name))).toBe(false);
  expect(objectsIn(mirror).filter((name) => name.startsWith("L0/"))).toHaveLength(20);
  await using none = new Scene(own, first, "mirrors");
  none.monotonicMs = 5 * MINUTE_MS;
  await none.look();
  expect(none.passes).toBe(0);
});
