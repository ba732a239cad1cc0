import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { appendFile, readFile, writeFile } from "node:fs/promises";
import { BakeliteError } from "../../src/util/errors.ts";
import { freePorts, runProgram, ServerProcess } from "../servers/programs.ts";
import { openTable, PASSPHRASE, type SshdServer, startSshd } from "../servers/sshd.ts";
import { eventually } from "../support/eventually.ts";
import { text, textOf } from "./conformance.ts";

let server: SshdServer;
beforeAll(async () => {
  server = await startSshd();
});
afterAll(() => server[Symbol.asyncDispose]());

/** What a stat with these keys of the configuration ends with; null: it answered. */
async function failureWith(more: Readonly<Record<string, unknown>>): Promise<BakeliteError | null> {
  try {
    await server.open(server.dataPath, more).stat("app/a");
    return null;
  } catch (error) {
    if (error instanceof BakeliteError) return error;
    throw error;
  }
}

async function knownHostsWith(name: string, content: string): Promise<string> {
  await writeFile(server.file(name), content);
  return server.file(name);
}

describe("logging in to an SFTP server", () => {
  test("by a key, a locked key, and an RSA key", async () => {
    expect(await failureWith({})).toBeNull();
    expect(await failureWith({ key_file: server.lockedKey, key_passphrase: PASSPHRASE })).toBeNull();
    await writeFile(server.file("passphrase"), `${PASSPHRASE}\n`);
    const passphraseFile = { key_passphrase_file: server.file("passphrase") };
    expect(await failureWith({ key_file: server.lockedKey, ...passphraseFile })).toBeNull();
    expect(await failureWith({ key_file: server.file("id_rsa") })).toBeNull();
  });

  test("by an agent when nothing is configured", async () => {
    const socket = server.file("agent");
    await using agent = new ServerProcess(["ssh-agent", "-D", "-a", socket], { logPath: server.file("agent.log") });
    const add = ["env", `SSH_AUTH_SOCK=${socket}`, "ssh-add", "-q", server.key];
    await eventually(async () => (await runProgram(add).catch(() => null)) !== null, { what: "the agent to answer" });
    const before = process.env["SSH_AUTH_SOCK"];
    try {
      process.env["SSH_AUTH_SOCK"] = socket;
      expect(await failureWith({ key_file: undefined })).toBeNull();
      delete process.env["SSH_AUTH_SOCK"];
      const failure = await failureWith({ key_file: undefined, timeout: "59s" });
      expect(failure).toMatchObject({ code: "storage-denied", hint: expect.stringContaining("SSH_AUTH_SOCK") });
    } finally {
      if (before !== undefined) process.env["SSH_AUTH_SOCK"] = before;
    }
    expect(agent.running).toBe(true);
  });

  test("a stranger's key is refused, with the methods that the server takes", async () => {
    const failure = await failureWith({ key_file: server.file("id_stranger") });
    expect(failure?.code).toBe("storage-denied");
    expect(failure?.message).toContain(
      `the key in ${server.file("id_stranger")} was refused; the server takes publickey`,
    );
    expect(failure?.subject).toStartWith(`sftp://${server.user}@127.0.0.1:${server.port}/`);
  });

  const isRoot = process.geteuid?.() === 0;
  test.skipIf(!isRoot)("by a password, of the configuration or of a file (needs root, for a user)", async () => {
    await using own = await startSshd({ password: "hunter2" });
    await writeFile(own.file("password"), "hunter2\n");
    const login = { user: own.passwordUser, key_file: undefined };
    const path = own.newPath();
    await own.open(path, { ...login, password: "hunter2" }).put("app/a", text("a"));
    const byFile = own.open(path, { ...login, password_file: own.file("password") });
    expect(await textOf(byFile, "app/a")).toBe("a");
    await expect(own.open(path, { ...login, password: "hunter3" }).stat("app/a")).rejects.toMatchObject({
      code: "storage-denied",
      message: expect.stringContaining("the password was refused"),
    });
  });

  test("a password is in no message", async () => {
    await writeFile(server.file("password"), "hunter2\n");
    for (const more of [{ password: "hunter2" }, { password_file: server.file("password") }]) {
      const failure = await failureWith({ key_file: undefined, ...more });
      expect(failure?.code).toBe("storage-denied");
      expect(Bun.inspect(failure)).not.toContain("hunter2");
    }
  });

  test.each([
    ["locked, without a passphrase", () => ({ key_file: server.lockedKey }), "is locked with a passphrase"],
    ["a wrong passphrase", () => ({ key_file: server.lockedKey, key_passphrase: "x" }), "does not unlock"],
    [
      "a file with a wrong passphrase",
      () => ({ key_file: server.lockedKey, key_passphrase_file: server.knownHosts }),
      "`key_passphrase_file` does not unlock",
    ],
    [
      "a passphrase file that is not there",
      () => ({ key_file: server.lockedKey, key_passphrase_file: "/nowhere/passphrase" }),
      "`key_passphrase_file` cannot be read",
    ],
    ["the public part", () => ({ key_file: `${server.key}.pub` }), "no private key"],
    ["not a key", () => ({ key_file: server.knownHosts }), "no key that can be read"],
    ["a key file that is not there", () => ({ key_file: "/nowhere/key" }), "`key_file` cannot be read"],
    ["known_hosts that is not there", () => ({ known_hosts: "/nowhere/hosts" }), "known_hosts cannot be read"],
  ])("says what is wrong with the key: %s", async (_, more, message) => {
    const failure = await failureWith(more());
    expect(failure).toMatchObject({ code: "storage-denied", message: expect.stringContaining(message) });
    expect(failure?.hint).toBeString();
  });

  test("nobody at the port, and a name without an address, are unreachable", async () => {
    const [port] = await freePorts(1);
    expect(await failureWith({ port })).toMatchObject({ code: "storage-unreachable" });
    expect(await failureWith({ host: "no-such-host.invalid" })).toMatchObject({ code: "storage-unreachable" });
  });
});

describe("the key of an SFTP server", () => {
  test("is found hashed, and by the kind that is known", async () => {
    const copy = await knownHostsWith("hashed", await readFile(server.knownHosts, "utf8"));
    await runProgram(["ssh-keygen", "-q", "-H", "-f", copy]);
    expect(await readFile(copy, "utf8")).toStartWith("|1|");
    expect(await failureWith({ known_hosts: copy })).toBeNull();
    const rsaOnly = await knownHostsWith("rsa", `[127.0.0.1]:${server.port} ${await server.hostKey("rsa")}\n`);
    expect(await failureWith({ known_hosts: rsaOnly })).toBeNull();
  });

  test("that is not known is refused, with a line to add that works", async () => {
    const empty = await knownHostsWith("empty", "");
    const failure = await failureWith({ known_hosts: empty });
    expect(failure?.code).toBe("storage-denied");
    expect(failure?.message).toContain("is not known here");
    const fingerprint = (await runProgram(["ssh-keygen", "-l", "-f", server.file("host_ed25519.pub")])).split(" ")[1];
    expect(failure?.message).toContain(fingerprint ?? "a fingerprint");
    const added = failure?.hint?.split(`${empty}: `)[1] ?? "";
    expect(added).toBe(`[127.0.0.1]:${server.port} ${await server.hostKey("ed25519")}`);
    await appendFile(empty, `${added}\n`);
    expect(await failureWith({ known_hosts: empty })).toBeNull();
  });

  test("that has changed is refused loudly, and so is one that is revoked or left to an authority", async () => {
    const stranger = (await readFile(server.file("id_stranger.pub"), "utf8")).split(" ").slice(0, 2).join(" ");
    const here = `[127.0.0.1]:${server.port}`;
    const changed = await failureWith({ known_hosts: await knownHostsWith("changed", `${here} ${stranger}\n`) });
    expect(changed).toMatchObject({ code: "storage-denied", message: expect.stringContaining("ITS KEY HAS CHANGED") });
    const own = await server.hostKey("ed25519");
    const revoked = await failureWith({ known_hosts: await knownHostsWith("revoked", `@revoked * ${own}\n`) });
    expect(revoked?.message).toContain("REVOKED");
    const authority = await failureWith({ known_hosts: await knownHostsWith("ca", `@cert-authority * ${stranger}\n`) });
    expect(authority?.message).toContain("certificate authority");
  });

  test("is checked before the password is sent", async () => {
    const empty = await knownHostsWith("empty-again", "");
    const table = server.table(server.dataPath, { key_file: undefined, password: "hunter2", known_hosts: empty });
    await expect(openTable(table).stat("a")).rejects.toThrow("is not known here");
    expect(await readFile(server.file("log"), "utf8")).not.toContain("hunter2");
  });
});
