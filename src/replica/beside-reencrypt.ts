import type { DatabaseConfig } from "../config/types.ts";
import { findLockHolder, type LockHolder } from "../state/instance-lock.ts";
import { BakeliteError } from "../util/errors.ts";

/**
 * Throws `locked` while a `bakelite reencrypt` of this host rewrites what is stored for the database: what writes or deletes objects
 * would store them under the old seal, or take away what is being read. A daemon is no hindrance. Where the lock
 * cannot be looked at, as by another user than the database's, nothing is known and nothing is refused: a reencrypt looks again for
 * what came meanwhile before it ends.
 */
export async function refuseBesideReencrypt({ path }: Pick<DatabaseConfig, "path">): Promise<void> {
  const holder = await holderOf(path);
  if (holder?.purpose !== "reencrypt") return;
  const who = holder.pid === null ? "another process" : `process ${holder.pid}`;
  throw new BakeliteError("locked", `${who} is rewriting what is stored (\`bakelite reencrypt\`)`, {
    subject: path,
    hint: "wait until it has ended, then run this again",
  });
}

async function holderOf(path: string): Promise<LockHolder | null> {
  try {
    return await findLockHolder(path);
  } catch (error) {
    if (error instanceof BakeliteError && error.code !== "internal") return null;
    throw error;
  }
}
