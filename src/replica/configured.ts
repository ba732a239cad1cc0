import { loadKeys, openDestination } from "../config/assemble.ts";
import type { DatabaseConfig } from "../config/types.ts";
import { PLAINTEXT_SEAL } from "../format/names.ts";
import { Replica } from "./replica.ts";

export interface ConfiguredReplicaOptions {
  readonly signal?: AbortSignal | undefined;
  /** Look at the first destination only. */
  readonly firstOnly?: boolean;
}

/**
 * Opens what is stored for a configured database, read with the configured key: at its lock-step destinations in the order of the
 * config, then at its mirrors. Throws what `loadKeys` and `Replica.open` throw.
 */
export async function openConfiguredReplica(
  database: DatabaseConfig,
  options: ConfiguredReplicaOptions = {},
): Promise<Replica> {
  const { sealKey, ring, acceptPlaintext } = await loadKeys(database.encryption);
  const ordered = [
    ...database.backends.filter((backend) => !backend.async),
    ...database.backends.filter((backend) => backend.async),
  ];
  const used = options.firstOnly === true ? ordered.slice(0, 1) : ordered;
  return Replica.open({
    database: database.name,
    backends: used.map((backend) => openDestination(backend)),
    keys: ring,
    seal: sealKey?.fingerprint ?? PLAINTEXT_SEAL,
    acceptPlaintext,
    signal: options.signal,
  });
}
