import { describe, expect, test } from "bun:test";
import { createHmac } from "node:crypto";
import {
  fingerprintOf,
  type HostAddress,
  judgeHostKey,
  knownHostsLine,
  knownKeyTypes,
} from "../../src/storage/sftp/known-hosts.ts";

function keyOf(type: string, content: string): Buffer {
  const [name, rest] = [Buffer.from(type), Buffer.from(content)];
  const length = Buffer.alloc(4);
  length.writeUInt32BE(name.byteLength);
  return Buffer.concat([length, name, rest]);
}

const OURS = keyOf("ssh-ed25519", "ours");
const OTHER = keyOf("ssh-ed25519", "other");
const RSA = keyOf("ssh-rsa", "rsa");
const line = (hosts: string, key: Buffer) =>
  `${hosts} ${key.toString("latin1", 4, 4 + key.readUInt32BE(0))} ${key.toString("base64")}`;
const judge = (content: string, address: HostAddress, key = OURS) =>
  judgeHostKey([{ path: "/k", content }], address, key);
const hashed = (name: string) => {
  const salt = Buffer.from("01234567890123456789");
  return `|1|${salt.toString("base64")}|${createHmac("sha1", salt).update(name).digest("base64")}`;
};

const AT_22 = { host: "Backup.example.com", port: 22 };
const AT_2222 = { host: "backup.example.com", port: 2222 };

describe("known_hosts", () => {
  test.each([
    ["a plain name", "backup.example.com", AT_22, "known"],
    ["a name among others", "a,backup.example.com,10.0.0.1", AT_22, "known"],
    ["a wildcard", "*.example.com", AT_22, "known"],
    ["a question mark", "b?ckup.example.com", AT_22, "known"],
    ["a wildcard with a negation", "*.example.com,!backup.*", AT_22, "unknown"],
    ["a negation alone", "!other", AT_22, "unknown"],
    ["another name", "backup.example.org", AT_22, "unknown"],
    ["a port", "[backup.example.com]:2222", AT_2222, "known"],
    ["a port with a wildcard", "[*.example.com]:2222", AT_2222, "known"],
    ["another port", "[backup.example.com]:2223", AT_2222, "unknown"],
    ["a name without the port", "backup.example.com", AT_2222, "unknown"],
    ["a port for a name at 22", "[backup.example.com]:22", AT_22, "unknown"],
    ["a hashed name", hashed("backup.example.com"), AT_22, "known"],
    ["a hashed name and port", hashed("[backup.example.com]:2222"), AT_2222, "known"],
    ["another hashed name", hashed("backup.example.org"), AT_22, "unknown"],
    ["a hash of another kind", "|2|AAAA|AAAA", AT_22, "unknown"],
    ["a wildcard that could take for ever", `${"*a".repeat(40)}b`, { host: "a".repeat(250), port: 22 }, "unknown"],
  ])("%s", (_, hosts, address, verdict) => {
    expect(judge(`# comment\n\nnonsense\n${line(hosts, OURS)} comment\r\n`, address).verdict).toBe(verdict as "known");
  });

  test("names the line that decided", () => {
    const content = `${line("backup.example.com", RSA)}\n${line("backup.example.com", OURS)}\n`;
    expect(judge(content, AT_22)).toEqual({ verdict: "known", at: { path: "/k", lineNumber: 2 } });
    expect(judge(content, AT_22, OTHER)).toEqual({ verdict: "changed", at: { path: "/k", lineNumber: 2 } });
    expect(judge(line("backup.example.com", RSA), AT_22)).toMatchObject({ verdict: "other-kind" });
  });

  test("a revoked key is refused even where another line knows it", () => {
    const content = `${line("backup.example.com", OURS)}\n@revoked ${line("*", OURS)}\n`;
    expect(judge(content, AT_22)).toMatchObject({ verdict: "revoked", at: { lineNumber: 2 } });
    expect(judge(`@revoked ${line("*", OTHER)}\n${line("*", OURS)}`, AT_22).verdict).toBe("known");
  });

  test("an authority vouches for nobody", () => {
    expect(judge(`@cert-authority ${line("*.example.com", OURS)}`, AT_22).verdict).toBe("authority-only");
    expect(judge(`@strange ${line("*.example.com", OURS)}`, AT_22).verdict).toBe("unknown");
  });

  test("a line whose kind is not its key's counts for nothing", () => {
    expect(judge(`backup.example.com ssh-rsa ${OURS.toString("base64")}`, AT_22).verdict).toBe("unknown");
    expect(judge("backup.example.com ssh-ed25519 AA", AT_22).verdict).toBe("unknown");
  });

  test("tells which kinds of keys are known, the line to add and the fingerprint", () => {
    const files = [{ path: "/k", content: `${line("h", RSA)}\n${line("h", OURS)}\n${line("other", OTHER)}\n` }];
    expect(knownKeyTypes(files, { host: "h", port: 22 })).toEqual(["ssh-rsa", "ssh-ed25519"]);
    expect(knownHostsLine(AT_2222, OURS)).toBe(line("[backup.example.com]:2222", OURS));
    expect(judge(knownHostsLine(AT_2222, OURS), AT_2222).verdict).toBe("known");
    expect(fingerprintOf(OURS)).toMatch(/^SHA256:[A-Za-z0-9+/]{43}$/);
  });
});
