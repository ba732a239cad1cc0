import { deriveSealKey, emptyKeyRing, type KeyRing, keyRing, type SealKey } from "../format/envelope.ts";
import type { Backend } from "../storage/backend.ts";
import { openBackend } from "../storage/open.ts";
import { withRetry } from "../storage/retry.ts";
import { BakeliteError } from "../util/errors.ts";
import { readKeyFile } from "./key-file.ts";
import type { BackendConfig, EncryptionConfig } from "./types.ts";

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

/** The destination that one `[[database.backends]]` describes, with retries. Nothing is touched until its first call. */
export function openDestination(config: BackendConfig, news: DestinationNews = {}): Backend {
  switch (config.type) {
    case "file":
      return withRetry(openBackend({ type: "file", path: config.path }), { ...RETRIES, retries: config.retries });
    case "sftp":
      return withRetry(openBackend(config), { ...RETRIES, retries: config.retries });
    case "s3": {
      // It tries again by itself, request by request; around that, tries would multiply.
      const { credentials: explicit, credentialsFile, profile, async: _, ...own } = config;
      const credentials = { explicit, credentialsFile, profile, env: process.env };
      return openBackend({ ...own, credentials, onNotice: news.onNotice });
    }
    default:
      throw new BakeliteError("config-invalid", `this version of bakelite cannot store to \`${config.type}\` yet`, {
        hint: 'use a backend of type = "file", "s3" or "sftp"',
      });
  }
}
