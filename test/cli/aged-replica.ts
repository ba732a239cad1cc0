import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { formatKeyText, type SealKey } from "../../src/format/envelope.ts";
import { parseName } from "../../src/format/names.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { ReplicaBuilder, testKey } from "../replica/builder.ts";
import { seededRandom } from "../support/random.ts";
import type { TemporaryDirectory } from "../support/temporary-directory.ts";

export interface AgedOptions {
  readonly states: number;
  readonly spacingMs: number;
  /** A full backup at state 1 and at each multiple of it. */
  readonly fullEvery: number;
  /** More keys of the `[[database]]`. */
  readonly policy?: string;
  /** The folders of the destinations, each with a copy of its own; `["store"]` by default. */
  readonly stores?: readonly string[];
  readonly sealed?: boolean;
  readonly name?: string;
}

/** A replica in directories whose objects are as old as their states: the newest was stored at `newestMs`. */
export interface AgedReplica {
  readonly builder: ReplicaBuilder;
  readonly configPath: string;
  readonly databasePath: string;
  readonly stores: readonly string[];
  readonly newestMs: number;
  /** Writes the configuration anew with these keys. */
  configure(policy: string): void;
}

export const START_MS = Date.UTC(2026, 0, 1);

/** Keys of a policy that merges by windows of 1 and 10 minutes and deletes what was merged an hour ago. */
export const POLICY = `compaction_levels = ["1m", "10m"]
compaction_keep = ["1h", "1d"]
compaction_keep_recent = 4
`;

/** Builds one in a folder of its own in `directory`. */
export async function agedReplica(
  directory: TemporaryDirectory,
  folder: string,
  options: AgedOptions,
): Promise<AgedReplica> {
  const root = directory.file(folder);
  mkdirSync(join(root, "live"), { recursive: true });
  const stores = (options.stores ?? ["store"]).map((name) => join(root, name));
  const key = options.sealed === true ? 7 : null;
  const builder = await build(stores, key === null ? null : testKey(key), options);
  const newestMs = START_MS + (options.states - 1) * options.spacingMs;
  const configPath = join(root, "bakelite.toml");
  const databasePath = join(root, "live", "app.db");
  if (key !== null)
    writeFileSync(join(root, "key"), `${formatKeyText(new Uint8Array(32).fill(key))}\n`, { mode: 0o600 });
  const configure = (policy: string) =>
    writeFileSync(
      configPath,
      [
        `[[database]]\nname = "${options.name ?? "app"}"\npath = "${databasePath}"\n${policy}`,
        ...(key === null ? [] : [`[database.encryption]\nkey_file = "${join(root, "key")}"\n`]),
        ...stores.map((path) => `[[database.backends]]\ntype = "file"\npath = "${path}"\nretries = 0\n`),
      ].join("\n"),
    );
  configure(options.policy ?? POLICY);
  return { builder, configPath, databasePath, stores, newestMs, configure };
}

async function build(stores: readonly string[], seal: SealKey | null, options: AgedOptions): Promise<ReplicaBuilder> {
  const random = seededRandom(options.states);
  const builder = new ReplicaBuilder({
    backends: stores.map((path) => new FileBackend({ path })),
    random: seededRandom(1),
    startMs: START_MS,
    seal,
    database: options.name ?? "app",
  });
  builder.beginChain(Array.from({ length: 8 }, () => builder.randomImage()));
  await builder.storeFull(1);
  for (let index = 2; index <= options.states; index++) {
    builder.passTime(options.spacingMs);
    builder.commitRandom(random.integer(1, 4), random.integer(4, 24));
    await builder.storeChangeSet(index);
    if (index % options.fullEvery === 0) await builder.storeFull(index);
  }
  for (const store of stores) age(store, builder);
  return builder;
}

/** Gives every object the time of its last state. */
export function age(store: string, builder: ReplicaBuilder): void {
  for (const file of filesBelow(join(store, builder.database))) {
    const name = parseName(file.slice(join(store, builder.database).length + 1));
    if (name === null) continue;
    const stampMs = builder.states.get(name.kind === "full" ? name.index : name.last)?.stampMs ?? START_MS;
    utimesSync(file, stampMs / 1000, stampMs / 1000);
  }
}

/** Every file below a folder, ascending. */
export function filesBelow(folder: string): readonly string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

/** Changes with every name, byte and time of the tree. */
export function hashTree(folder: string): string {
  const hash = createHash("sha256");
  for (const file of filesBelow(folder)) hash.update(`${file}\0${statSync(file).mtimeMs}\0`).update(readFileSync(file));
  return hash.digest("hex");
}

/** Names of the objects below the database's folder. */
export function objectsIn(store: string, database = "app"): readonly string[] {
  const folder = join(store, database);
  return filesBelow(folder).map((file) => file.slice(folder.length + 1));
}
