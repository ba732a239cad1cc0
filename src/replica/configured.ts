import { type DestinationNews, loadKeys, openDestination } from "../config/assemble.ts";
import type { BackendConfig, DatabaseConfig } from "../config/types.ts";
import { PLAINTEXT_SEAL } from "../format/names.ts";
import { BakeliteError } from "../util/errors.ts";
import { Replica } from "./replica.ts";

export interface ConfiguredReplicaOptions {
  readonly signal?: AbortSignal | undefined;
  /** Look at the first destination only. */
  readonly firstOnly?: boolean;
  /** Look at this one only. */
  readonly only?: BackendConfig | undefined;
  /** What is in this machine before what is reached over a network, of the lock-step destinations and of the mirrors. */
  readonly nearestFirst?: boolean;
  readonly news?: DestinationNews | undefined;
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
  const ordered = database.backends.toSorted((a, b) => rankOf(a, options) - rankOf(b, options));
  const used = options.only !== undefined ? [options.only] : options.firstOnly === true ? ordered.slice(0, 1) : ordered;
  return Replica.open({
    database: database.name,
    backends: used.map((backend) => openDestination(backend, options.news)),
    keys: ring,
    seal: sealKey?.fingerprint ?? PLAINTEXT_SEAL,
    acceptPlaintext,
    signal: options.signal,
  });
}

function rankOf({ async: isMirror, type }: BackendConfig, { nearestFirst = false }: ConfiguredReplicaOptions): number {
  return (isMirror ? 2 : 0) + (nearestFirst && type !== "file" ? 1 : 0);
}

/**
 * The destination that somebody means: its number in the order of the configuration, from 1, its location, or its type where only one has
 * that. Throws `usage`, naming them all.
 */
export function chooseDestination({ name, backends }: DatabaseConfig, wanted: string): BackendConfig {
  const places = backends.map((config) => ({ config, location: openDestination(config).location }));
  const byNumber = /^\d+$/.test(wanted) ? places[Number(wanted) - 1] : undefined;
  const wantedLocation = wanted.replace(/(?<=.)\/+$/, "");
  const byLocation = places.find(({ location }) => location === wantedLocation);
  const ofType = places.filter(({ config }) => config.type === wanted);
  const found = byNumber ?? byLocation ?? (ofType.length === 1 ? ofType[0] : undefined);
  if (found !== undefined) return found.config;
  const what = ofType.length > 1 ? `stands for ${ofType.length} destinations` : "is none of its destinations";
  throw new BakeliteError("usage", `\`--destination\`: ${JSON.stringify(wanted)} ${what}`, {
    subject: name,
    hint: `one of ${places.map(({ location, config }, i) => `${i + 1} (${location}${config.async ? ", a mirror" : ""})`).join(", ")}`,
  });
}
