import { readFile } from "node:fs/promises";
import type { AuthenticationAttempt, utils } from "ssh2";
import { BakeliteError } from "../../util/errors.ts";

/** How to prove who we are. */
export type SftpAuthentication =
  | {
      readonly method: "key-file";
      readonly keyFile: string;
      /** At most one of the two, where the key is locked. */
      readonly keyPassphrase: string | undefined;
      readonly keyPassphraseFile: string | undefined;
    }
  | { readonly method: "password"; readonly password: string }
  | { readonly method: "password-file"; readonly passwordFile: string }
  /** The ssh-agent that `SSH_AUTH_SOCK` names. */
  | { readonly method: "agent" };

/** As messages call it. */
export function describeLogin(authentication: SftpAuthentication): string {
  switch (authentication.method) {
    case "key-file":
      return `the key in ${authentication.keyFile}`;
    case "password":
      return "the password";
    case "password-file":
      return `the password in ${authentication.passwordFile}`;
    case "agent":
      return "the keys of the ssh-agent";
  }
}

/** Reads what is needed anew each time, so that a replaced key is used. Throws `storage-denied`; no secret is in any message. */
export async function prepareLogin(
  user: string,
  authentication: SftpAuthentication,
  parseKey: typeof utils.parseKey,
): Promise<AuthenticationAttempt> {
  switch (authentication.method) {
    case "password":
      return { type: "password", username: user, password: authentication.password };
    case "password-file": {
      const password = withoutLineEnd(await readSecret(authentication.passwordFile, "password_file"));
      return { type: "password", username: user, password };
    }
    case "key-file": {
      const { keyFile, keyPassphraseFile } = authentication;
      const key = await readSecret(keyFile, "key_file");
      const passphrase =
        keyPassphraseFile === undefined
          ? authentication.keyPassphrase
          : withoutLineEnd(await readSecret(keyPassphraseFile, "key_passphrase_file"));
      const passphraseKey = keyPassphraseFile === undefined ? "key_passphrase" : "key_passphrase_file";
      checkKey(parseKey(key, passphrase), keyFile, passphrase === undefined ? null : passphraseKey);
      return { type: "publickey", username: user, key, ...(passphrase === undefined ? {} : { passphrase }) };
    }
    case "agent": {
      const agent = process.env["SSH_AUTH_SOCK"];
      if (agent !== undefined && agent !== "") return { type: "agent", username: user, agent };
      throw new BakeliteError("storage-denied", "cannot log in to the SFTP server: nothing to log in with", {
        hint: "set `key_file`, `password` or `password_file`, or let SSH_AUTH_SOCK name an ssh-agent",
      });
    }
  }
}

/** `passphraseKey` is the key of the configuration that a passphrase came from; null: there is none. */
function checkKey(parsed: unknown, path: string, passphraseKey: string | null): void {
  const key: unknown = Array.isArray(parsed) ? parsed[0] : parsed;
  if (!(key instanceof Error)) {
    if (isPrivate(key)) return;
    throw new BakeliteError("storage-denied", "cannot log in to the SFTP server: the key file holds no private key", {
      subject: path,
      hint: "name the private key in `key_file`, not the one that ends in .pub",
    });
  }
  const isLocked = /passphrase|decrypt|encrypted|integrity/i.test(key.message);
  throw new BakeliteError(
    "storage-denied",
    `cannot log in to the SFTP server: ${
      isLocked
        ? passphraseKey === null
          ? "the key is locked with a passphrase"
          : `\`${passphraseKey}\` does not unlock the key`
        : "the key file holds no key that can be read"
    }`,
    {
      subject: path,
      hint: isLocked
        ? 'set `key_passphrase_file`, or `key_passphrase` from the environment: key_passphrase = "${SFTP_PASSPHRASE}"'
        : "make one with `ssh-keygen -t ed25519`; OpenSSH's and PEM formats are read",
      cause: key,
    },
  );
}

function isPrivate(key: unknown): boolean {
  if (typeof key !== "object" || key === null || !("isPrivateKey" in key)) return false;
  return typeof key.isPrivateKey === "function" && key.isPrivateKey() === true;
}

/** Without the end of the line that editors and `echo` put there. */
function withoutLineEnd(content: Buffer): string {
  return content.toString("utf8").replace(/\r?\n$/, "");
}

async function readSecret(path: string, key: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    throw new BakeliteError("storage-denied", `cannot log in to the SFTP server: \`${key}\` cannot be read`, {
      subject: path,
      hint: `make it readable to the user that bakelite runs as, and nobody else, or correct \`${key}\``,
      cause: error,
    });
  }
}
