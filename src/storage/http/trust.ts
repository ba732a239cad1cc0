import { readFile } from "node:fs/promises";
import { getCACertificates, rootCertificates } from "node:tls";
import { BakeliteError } from "../../util/errors.ts";

/**
 * PEM of all authorities to trust: those of `caFile` besides Bun's and the system's. (A `ca` of fetch replaces its own list.)
 * Throws `not-found` or `config-invalid` for a file that cannot be read or holds no certificate.
 */
export async function trustedAuthorities(caFile: string): Promise<string> {
  const own = await readPem(caFile);
  return [...new Set([...rootCertificates, ...systemAuthorities()]), own].join("\n");
}

async function readPem(path: string): Promise<string> {
  const hint = "check the backend's `ca_file`, and that the user running bakelite may read it";
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    throw new BakeliteError("config-invalid", "cannot read the file of certificates", { subject: path, hint, cause });
  }
  if (text.includes("-----BEGIN CERTIFICATE-----")) return text;
  throw new BakeliteError("config-invalid", "the file holds no certificate in PEM form", { subject: path, hint });
}

function systemAuthorities(): readonly string[] {
  try {
    return getCACertificates("system");
  } catch {
    return [];
  }
}
