import type { Clock } from "../../../util/clock.ts";
import type { Fetch } from "../../http/exchange.ts";

/** What a request is authorized with. */
export interface AccessToken {
  readonly token: string;
  /** Unix time. */
  readonly expiresMs: number;
}

export interface GcsCredentialsOptions {
  /** undefined: Application Default Credentials. */
  readonly serviceAccountFile: string | undefined;
  /** GOOGLE_APPLICATION_CREDENTIALS, CLOUDSDK_CONFIG, HOME, GCE_METADATA_HOST and NO_GCE_CHECK are looked at. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** A request for a token that makes no progress for this long has failed. */
  readonly timeoutMs: number;
  /** How often a failed one is tried again. */
  readonly retries: number;
  /** Authorities to trust, as PEM; undefined: those that Bun trusts. */
  readonly ca?: (() => Promise<string>) | undefined;
  readonly clock?: Clock;
  readonly random?: () => number;
  readonly fetch?: Fetch;
  /** The first wait between tries is at most this; 200 ms. */
  readonly baseDelayMs?: number;
}

/** A variable of the environment; one that is empty counts as not set. */
export function variable({ env }: GcsCredentialsOptions, name: string): string | undefined {
  const value = env[name];
  return value === "" ? undefined : value;
}

/** Reading and writing objects. Source: https://cloud.google.com/storage/docs/authentication#oauth-scopes */
export const STORAGE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write";
