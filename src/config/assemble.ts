import { readFile } from "node:fs/promises";
import { deriveSealKey, emptyKeyRing, type KeyRing, keyRing, parseKeyText, type SealKey } from "../format/envelope.ts";
import type { Backend } from "../storage/backend.ts";
import { openBackend } from "../storage/open.ts";
import { withRetry } from "../storage/retry.ts";
import { BakeliteError } from "../util/errors.ts";
import type { BackendConfig, EncryptionConfig } from "./types.ts";

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
  let text: string;
  try {
    text = await readFile(keyFile, "utf8");
  } catch (error) {
    throw new BakeliteError("key-wrong", "cannot read the key file", {
      subject: keyFile,
      hint: "check [defaults.encryption] key_file, and that the user running bakelite may read it",
      cause: error,
    });
  }
  const sealKey = deriveSealKey(parseKeyText(text, keyFile));
  return { sealKey, ring: keyRing([sealKey]), acceptPlaintext };
}

/** The destination that one `[[database.backends]]` describes, with retries. Nothing is touched until its first call. */
export function openDestination(config: BackendConfig): Backend {
  if (config.type !== "file") {
    throw new BakeliteError("config-invalid", `this version of bakelite cannot store to \`${config.type}\` yet`, {
      hint: 'use a backend of type = "file"',
    });
  }
  return withRetry(openBackend({ type: "file", path: config.path }), {
    retries: config.retries,
    baseMs: 200,
    capMs: 5000,
    maxElapsedMs: 30_000,
  });
}
