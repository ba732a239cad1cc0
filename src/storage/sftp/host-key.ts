import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { BakeliteError, systemErrorCode } from "../../util/errors.ts";
import {
  fingerprintOf,
  type HostAddress,
  hostPattern,
  judgeHostKey,
  type KnownHostsFile,
  type KnownHostsLine,
  keyTypeOf,
  knownHostsLine,
} from "./known-hosts.ts";

const SYSTEM_FILE = "/etc/ssh/ssh_known_hosts";

/** The key that a server showed, and where it is known from. */
export interface VerifiedHostKey {
  readonly fingerprint: string;
  readonly type: string;
  readonly at: KnownHostsLine;
}

/** The files that are asked, the one to add to first. A configured one stands alone. */
export function knownHostsPaths(configured: string | undefined): readonly string[] {
  if (configured !== undefined) return [configured];
  return [join(process.env["HOME"] ?? homedir(), ".ssh", "known_hosts"), SYSTEM_FILE];
}

/** Those that exist; a configured one must. Throws `storage-denied`. */
export async function readKnownHosts(configured: string | undefined): Promise<readonly KnownHostsFile[]> {
  const files: KnownHostsFile[] = [];
  for (const path of knownHostsPaths(configured)) {
    try {
      files.push({ path, content: await readFile(path, "utf8") });
    } catch (error) {
      if (configured === undefined && ["ENOENT", "ENOTDIR"].includes(systemErrorCode(error) ?? "")) continue;
      throw new BakeliteError("storage-denied", "cannot check who the SFTP server is: its known_hosts cannot be read", {
        subject: path,
        hint: "make it readable to the user that bakelite runs as, or correct `known_hosts`",
        cause: error,
      });
    }
  }
  return files;
}

/** Throws `storage-denied` unless the files know this key of this host. */
export function verifyHostKey(
  key: Buffer,
  {
    address,
    files,
    addTo,
    location,
  }: {
    readonly address: HostAddress;
    readonly files: readonly KnownHostsFile[];
    /** The path of the file that a new line belongs in. */
    readonly addTo: string;
    readonly location: string;
  },
): VerifiedHostKey {
  const fingerprint = fingerprintOf(key);
  const type = keyTypeOf(key);
  const shown = `${type} ${fingerprint}`;
  const judged = judgeHostKey(files, address, key);
  const refuse = (what: string, hint: string) =>
    new BakeliteError("storage-denied", `refused the SFTP server: ${what}`, { subject: location, hint });
  const add = `if the server itself shows that fingerprint (\`ssh-keygen -l -f /etc/ssh/ssh_host_*_key.pub\` there), add this line to ${addTo}: ${knownHostsLine(address, key)}`;
  switch (judged.verdict) {
    case "known":
      return { fingerprint, type, at: judged.at };
    case "unknown":
      return throwing(refuse(`its key is not known here; it shows ${shown}`, add));
    case "authority-only":
      return throwing(
        refuse(
          `line ${judged.at.lineNumber} of ${judged.at.path} leaves it to a certificate authority, which bakelite cannot check; it shows ${shown}`,
          add,
        ),
      );
    case "revoked":
      return throwing(
        refuse(
          `THE KEY THAT IT SHOWS IS REVOKED by line ${judged.at.lineNumber} of ${judged.at.path}: ${shown}`,
          "somebody may be using a stolen key: ask who runs the server before anything else",
        ),
      );
    case "changed":
    case "other-kind":
      return throwing(
        refuse(
          `ITS KEY HAS CHANGED, so it may be somebody else; it shows ${shown}, and line ${judged.at.lineNumber} of ${judged.at.path} has ${judged.verdict === "changed" ? "another key" : "a key of another kind"}`,
          `ask who runs the server whether its key was replaced; only then remove the old one (ssh-keygen -R '${hostPattern(address)}' -f ${judged.at.path}) and add to ${addTo}: ${knownHostsLine(address, key)}`,
        ),
      );
  }
}

function throwing(error: BakeliteError): never {
  throw error;
}
