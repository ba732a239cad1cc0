import type { Dirent } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { lookAtDatabase } from "./doctor-database.ts";

/** A SQLite database that somebody may want to back up. */
export interface FoundDatabase {
  readonly path: string;
  readonly sizeBytes: number;
  readonly modifiedMs: number;
  readonly isWal: boolean;
}

export interface SearchLimits {
  readonly roots: readonly string[];
  readonly maxDepth: number;
  readonly maxEntries: number;
  readonly deadlineMs: number;
}

const USUAL: SearchLimits = {
  roots: ["/var/lib", "/srv", "/opt", "/data", "/var/www", "/home", "/root"],
  maxDepth: 5,
  maxEntries: 50_000,
  deadlineMs: 2000,
};
/** SQLite files of the system, of caches and of ours. */
const SKIPPED = new Set([
  ".bakelite",
  ".cache",
  ".git",
  "node_modules",
  "overlay2",
  "containerd",
  "docker",
  "snapd",
  "dpkg",
  "rpm",
  "PackageKit",
  "dnf",
]);
const LIKELY_NAME = /\.(?:db|db3|s3db|sqlite|sqlite3)$/i;

/**
 * SQLite databases in the usual places, the most recently written first. Reads the first page of files that are named like one or have a
 * `-wal` beside them; gives up quietly at its limits, and passes over what it may not read.
 */
export async function findDatabases(limits: SearchLimits = USUAL): Promise<readonly FoundDatabase[]> {
  const endMs = performance.now() + limits.deadlineMs;
  const found: FoundDatabase[] = [];
  let entries = 0;
  let level = limits.roots;
  // Level by level: what is near the top is likelier to be meant.
  for (let depth = 0; depth <= limits.maxDepth && level.length > 0; depth++) {
    const next: string[] = [];
    for (const folder of level) {
      if (performance.now() > endMs || entries > limits.maxEntries) return sorted(found);
      const names: Dirent[] = await readdir(folder, { withFileTypes: true }).catch(() => []);
      entries += names.length;
      const files = new Set(names.filter((name) => name.isFile()).map(({ name }) => name));
      for (const entry of names) {
        const path = join(folder, entry.name);
        if (entry.isDirectory() && !SKIPPED.has(entry.name)) next.push(path);
        else if (entry.isFile() && (LIKELY_NAME.test(entry.name) || files.has(`${entry.name}-wal`))) {
          const database = await lookAt(path);
          if (database !== null) found.push(database);
        }
      }
    }
    level = next;
  }
  return sorted(found);
}

async function lookAt(path: string): Promise<FoundDatabase | null> {
  // A file that may not be read, or that is gone again, is not offered.
  const { info, header, wal } = await lookAtDatabase(path).catch(() => ({ info: null, header: null, wal: null }));
  if (info === null || header?.kind !== "sqlite") return null;
  const modifiedMs = Math.max(info.mtimeMs, wal?.mtimeMs ?? 0);
  return { path, sizeBytes: info.size, modifiedMs, isWal: header.header.isWal };
}

function sorted(found: readonly FoundDatabase[]): readonly FoundDatabase[] {
  return found.toSorted((a, b) => b.modifiedMs - a.modifiedMs);
}
