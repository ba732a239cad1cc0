import { RenewedSecret } from "../../http/renewed-secret.ts";
import { findToken } from "./find.ts";
import { type AccessToken, type GcsCredentialsOptions, variable } from "./types.ts";

/** Access tokens, kept and renewed before they expire. */
export type GcsCredentials = RenewedSecret<AccessToken>;

const shared = new Map<string, GcsCredentials>();

/**
 * The credentials that these options lead to, one for all destinations of this process: 500 databases log in once. `caFile` is what
 * `ca` reads.
 */
export function sharedGcsCredentials(options: GcsCredentialsOptions, caFile: string | undefined): GcsCredentials {
  const names = ["GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG", "HOME", "GCE_METADATA_HOST", "NO_GCE_CHECK"];
  const variables = names.map((name) => variable(options, name) ?? null);
  const key = JSON.stringify([options.serviceAccountFile ?? null, caFile ?? null, ...variables]);
  const known = shared.get(key) ?? openGcsCredentials(options);
  shared.set(key, known);
  return known;
}

/** Nothing is read or asked before the first call. */
export function openGcsCredentials(options: GcsCredentialsOptions): GcsCredentials {
  return new RenewedSecret({
    find: (how) => findToken(options, how),
    isSame: (one, other) => one.token === other.token,
    what: "credentials of Google Cloud",
    clock: options.clock,
    random: options.random,
  });
}
