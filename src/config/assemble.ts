import { deriveSealKey, emptyKeyRing, type KeyRing, keyRing, type SealKey } from "../format/envelope.ts";
import type { Backend } from "../storage/backend.ts";
import { openBackend } from "../storage/open.ts";
import { type Rates, rateLimitsOf, setRates, withRateLimit } from "../storage/rate-limit.ts";
import { withRetry } from "../storage/retry.ts";
import { withTimeout } from "../storage/timeout.ts";
import { readKeyFile } from "./key-file.ts";
import type { BackendConfig, DatabaseConfig, EncryptionConfig } from "./types.ts";

const RETRIES = { baseMs: 200, capMs: 5000, maxElapsedMs: 30_000 } as const;

/** Whom to tell about what fails nothing and an operator should know. */
export interface DestinationNews {
  readonly onNotice?: (notice: { readonly message: string; readonly hint: string }) => void;
}

/** The keys that a database's configuration names. */
export interface Keys {
  /** What new objects are sealed with; null: nothing. */
  readonly sealKey: SealKey | null;
  /** What stored objects may be read with. */
  readonly ring: KeyRing;
  readonly acceptPlaintext: boolean;
}

/** Reads the key file. Throws `key-wrong` when it cannot be read or holds no key; the key is in no message. */
export async function loadKeys(encryption: EncryptionConfig): Promise<Keys> {
  if (encryption.mode === "none") return { sealKey: null, ring: emptyKeyRing, acceptPlaintext: true };
  const { keyFile, acceptPlaintext } = encryption;
  const sealKey = deriveSealKey(await readKeyFile(keyFile));
  return { sealKey, ring: keyRing([sealKey]), acceptPlaintext };
}

/** Those whose limits `applyRateLimits` has set. */
const managedPlaces = new Set<string>();

/**
 * The destination that one `[[database.backends]]` describes, with retries, timeouts and rate limits. Nothing is touched until its first
 * call. The limits are of the place, so of all who store there in this process: `applyRateLimits` says what they are, or without
 * that the newest to be opened.
 */
export function openDestination(config: BackendConfig, news: DestinationNews = {}): Backend {
  const place = placeOf(config);
  const limits = rateLimitsOf(place);
  if (!managedPlaces.has(place)) setRates(limits, config);
  return withRateLimit(openWithRetries(config, news), limits);
}

/**
 * Sets the limits of all places that these databases store to, at once and also for what is under way. Where two
 * of them name different limits for one place, the lower one counts.
 */
export function applyRateLimits(databases: readonly DatabaseConfig[]): void {
  const rates = new Map<string, Rates>();
  for (const config of databases.flatMap(({ backends }) => backends)) {
    const known = rates.get(placeOf(config));
    rates.set(placeOf(config), {
      uploadBytesPerSecond: lower(known?.uploadBytesPerSecond ?? 0, config.uploadBytesPerSecond),
      downloadBytesPerSecond: lower(known?.downloadBytesPerSecond ?? 0, config.downloadBytesPerSecond),
    });
  }
  managedPlaces.clear();
  for (const [place, own] of rates) {
    managedPlaces.add(place);
    setRates(rateLimitsOf(place), own);
  }
}

/** 0 is no limit. */
function lower(one: number, other: number): number {
  return one === 0 || other === 0 ? Math.max(one, other) : Math.min(one, other);
}

/** What shares a line: a bucket, a container, a server, a directory; whatever the prefix. */
function placeOf(config: BackendConfig): string {
  switch (config.type) {
    case "file":
      return `file ${config.path}`;
    case "s3":
    case "gcs":
      return `${config.type} ${config.endpoint ?? ""} ${config.bucket}`;
    case "azure":
      return `azure ${config.endpoint ?? ""} ${config.account} ${config.container}`;
    case "sftp":
      return `sftp ${config.host}:${config.port}`;
  }
}

function openWithRetries(config: BackendConfig, news: DestinationNews): Backend {
  switch (config.type) {
    case "file": {
      const timed = withTimeout(openBackend({ type: "file", path: config.path }), config.timeoutMs);
      return withRetry(timed, { ...RETRIES, retries: config.retries });
    }
    case "sftp":
      return withRetry(openBackend(config), { ...RETRIES, retries: config.retries });
    // The others try again by themselves, request by request; around that, tries would multiply.
    case "gcs":
    case "azure":
      return openBackend({ ...config, env: process.env, onNotice: news.onNotice });
    case "s3": {
      const { credentials: explicit, credentialsFile, profile, async: _, ...own } = config;
      const credentials = { explicit, credentialsFile, profile, env: process.env };
      return openBackend({ ...own, credentials, onNotice: news.onNotice });
    }
  }
}
