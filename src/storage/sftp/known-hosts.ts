import { createHash, createHmac } from "node:crypto";

/** The content of one known_hosts file. */
export interface KnownHostsFile {
  readonly path: string;
  readonly content: string;
}

/** Who is asked for: a name or an address as configured, and its port. */
export interface HostAddress {
  readonly host: string;
  readonly port: number;
}

export interface KnownHostsLine {
  readonly path: string;
  readonly lineNumber: number;
}

/** What the files say of a host that showed a key; `at` is the line that decided. */
export type HostKeyVerdict =
  | { readonly verdict: "known"; readonly at: KnownHostsLine }
  | { readonly verdict: "revoked"; readonly at: KnownHostsLine }
  /** A key of the same kind is known, and it is another one. */
  | { readonly verdict: "changed"; readonly at: KnownHostsLine }
  /** Only keys of other kinds are known. */
  | { readonly verdict: "other-kind"; readonly at: KnownHostsLine }
  /** No key of its own is known, only an authority that would vouch for it. */
  | { readonly verdict: "authority-only"; readonly at: KnownHostsLine }
  | { readonly verdict: "unknown" };

interface Entry {
  readonly at: KnownHostsLine;
  readonly marker: "none" | "revoked" | "cert-authority";
  readonly type: string;
  readonly key: Buffer;
}

const DEFAULT_PORT = 22;

/** As known_hosts writes an address: `host`, or `[host]:port` where the port is not 22. */
export function hostPattern({ host, port }: HostAddress): string {
  const name = host.toLowerCase();
  return port === DEFAULT_PORT ? name : `[${name}]:${port}`;
}

/** The line to add to a known_hosts file for this key. */
export function knownHostsLine(address: HostAddress, key: Buffer): string {
  return `${hostPattern(address)} ${keyTypeOf(key)} ${key.toString("base64")}`;
}

/** As `ssh-keygen -l` shows it. */
export function fingerprintOf(key: Buffer): string {
  return `SHA256:${createHash("sha256").update(key).digest("base64").replace(/=+$/, "")}`;
}

/** The kind of a public key: the text that it begins with (RFC 4253 section 6.6). "" when it does not. */
export function keyTypeOf(key: Buffer): string {
  const length = key.byteLength < 4 ? 0 : key.readUInt32BE(0);
  return length > 64 ? "" : key.toString("latin1", 4, 4 + length).replace(/[^\x21-\x7e]/g, "?");
}

/** Pure. A revoked key is refused whatever else is said of it, as in sshd(8) "SSH_KNOWN_HOSTS FILE FORMAT". */
export function judgeHostKey(files: readonly KnownHostsFile[], address: HostAddress, key: Buffer): HostKeyVerdict {
  const entries = entriesFor(files, address);
  const first = (matches: (entry: Entry) => boolean) => entries.find(matches)?.at;
  const revoked = first((entry) => entry.marker === "revoked" && entry.key.equals(key));
  if (revoked !== undefined) return { verdict: "revoked", at: revoked };
  const known = first((entry) => entry.marker === "none" && entry.key.equals(key));
  if (known !== undefined) return { verdict: "known", at: known };
  const changed = first((entry) => entry.marker === "none" && entry.type === keyTypeOf(key));
  if (changed !== undefined) return { verdict: "changed", at: changed };
  const other = first((entry) => entry.marker === "none");
  if (other !== undefined) return { verdict: "other-kind", at: other };
  const authority = first((entry) => entry.marker === "cert-authority");
  if (authority !== undefined) return { verdict: "authority-only", at: authority };
  return { verdict: "unknown" };
}

/** The kinds of keys that are known of a host: a server with several should be asked for one of these. */
export function knownKeyTypes(files: readonly KnownHostsFile[], address: HostAddress): readonly string[] {
  const entries = entriesFor(files, address).filter(({ marker }) => marker === "none");
  return [...new Set(entries.map(({ type }) => type))];
}

/** Lines that are not of the format are passed over, as OpenSSH does. */
function entriesFor(files: readonly KnownHostsFile[], address: HostAddress): readonly Entry[] {
  const name = hostPattern(address);
  return files.flatMap(({ path, content }) =>
    content.split(/\r?\n/).flatMap((line, i) => {
      const words = line.trim().split(/[ \t]+/);
      const marker = markerOf(words[0] ?? "");
      if (marker === null) return [];
      const [hosts = "", type = "", base64 = ""] = marker === "none" ? words : words.slice(1);
      if (hosts === "" || hosts.startsWith("#") || !matchesHost(hosts, name)) return [];
      const key = Buffer.from(base64, "base64");
      return keyTypeOf(key) === type ? [{ at: { path, lineNumber: i + 1 }, marker, type, key }] : [];
    }),
  );
}

function markerOf(word: string): Entry["marker"] | null {
  if (!word.startsWith("@")) return "none";
  if (word === "@revoked") return "revoked";
  return word === "@cert-authority" ? "cert-authority" : null;
}

/** A hash of the name, or patterns with commas between them, of which one that is negated and matches decides alone. */
function matchesHost(hosts: string, name: string): boolean {
  if (hosts.startsWith("|")) {
    const [, version, salt = "", hash = ""] = hosts.split("|");
    if (version !== "1") return false;
    return createHmac("sha1", Buffer.from(salt, "base64")).update(name).digest("base64") === hash;
  }
  let isMatched = false;
  for (const pattern of hosts.toLowerCase().split(",")) {
    if (pattern.startsWith("!")) {
      if (matchesPattern(pattern.slice(1), name)) return false;
    } else isMatched ||= matchesPattern(pattern, name);
  }
  return isMatched;
}

/** `*` stands for any characters, `?` for one. In time that grows with the product of the lengths, whatever they hold. */
function matchesPattern(pattern: string, name: string): boolean {
  let at = 0;
  let starAt = -1;
  let resumeAt = 0;
  for (let i = 0; i < name.length; ) {
    const wanted = pattern[at];
    if (wanted === "*") {
      starAt = at++;
      resumeAt = i;
    } else if (wanted === "?" || wanted === name[i]) {
      at++;
      i++;
    } else if (starAt !== -1) {
      at = starAt + 1;
      i = ++resumeAt;
    } else return false;
  }
  while (pattern[at] === "*") at++;
  return at === pattern.length;
}
