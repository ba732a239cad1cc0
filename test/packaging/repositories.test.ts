import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  appendFileSync,
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join, resolve } from "node:path";
import { findProgram, runProgram } from "../servers/programs.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { buildPackages, HOST_TARGET } from "./build-packages.ts";

const SCRIPT = resolve(import.meta.dir, "../../packaging/repositories.ts");
const SIGNER = "signer@example.org";
const missing = ["dpkg-deb", "rpmbuild", "rpm", "gpg", "apt-ftparchive", "apt-get", "createrepo_c"].filter(
  (name) => findProgram(name) === null,
);
if (missing.length > 0) console.log(`note: no repository was made: there is no ${missing.join(", ")}`);

describe.skipIf(missing.length > 0)("repositories", () => {
  let directory: TemporaryDirectory;
  let home: string;
  const outcome = { status: -1, said: "" };

  beforeAll(async () => {
    directory = await temporaryDirectory("repo");
    home = directory.file("gpg");
    mkdirSync(home, { mode: 0o700 });
    for (const who of [SIGNER, "stranger@example.org"])
      await gpg("--passphrase", "", "--quick-generate-key", who, "rsa3072", "sign", "never");
    expect(await buildPackages("/bin/true", directory.file("packages"))).toMatchObject({ status: 0 });
    Object.assign(outcome, await make());
    // _apt, as which apt fetches, has to come in.
    chmodSync(directory.path, 0o755);
  }, 90_000);

  afterAll(async () => {
    await runProgram(["gpgconf", "--homedir", home, "--kill", "all"]);
    await directory[Symbol.asyncDispose]();
  });

  async function gpg(...args: readonly string[]): Promise<string> {
    return await runProgram(["gpg", "--homedir", home, "--batch", "--quiet", ...args]);
  }

  async function make(key = SIGNER, from = directory.file("packages")) {
    const child = Bun.spawn(
      [
        ...[process.execPath, SCRIPT, "--key", key, "--packages", from, "--out", directory.file("served")],
        ...["--base-url", `file://${directory.file("served")}`],
      ],
      { env: { ...process.env, GNUPGHOME: home }, stdin: "ignore", stdout: "pipe", stderr: "pipe" },
    );
    const [stdout, stderr, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    return { status, said: stdout + stderr };
  }

  /** apt-get with a world of its own. */
  async function apt(...args: readonly string[]): Promise<string> {
    const world = directory.file("apt");
    for (const folder of ["state/lists/partial", "cache/archives/partial", "etc/sources.list.d", "etc/preferences.d"])
      mkdirSync(join(world, folder), { recursive: true });
    writeFileSync(join(world, "status"), "");
    const options = {
      "Dir::State": join(world, "state"),
      "Dir::State::status": join(world, "status"),
      "Dir::Cache": join(world, "cache"),
      "Dir::Etc": join(world, "etc"),
      "APT::Sandbox::User": "root",
    };
    const given = Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
    return await runProgram(["apt-get", ...given, ...args], { cwd: directory.path });
  }

  function useSource(change: (text: string) => string = (text) => text): void {
    mkdirSync(directory.file("apt", "etc", "sources.list.d"), { recursive: true });
    const text = readFileSync(directory.file("served", "bakelite.sources"), "utf8");
    writeFileSync(directory.file("apt", "etc", "sources.list.d", "bakelite.sources"), change(text));
  }

  test("are made from what lies there, and say so", () => {
    expect(outcome).toMatchObject({ status: 0, said: expect.stringContaining("1 .deb and 1 .rpm") });
    expect(readdirSync(directory.file("served")).toSorted()).toEqual([
      "apt",
      "bakelite.asc",
      "bakelite.repo",
      "bakelite.sources",
      "rpm",
    ]);
    expect(existsSync(directory.file("served.new"))).toBe(false);
  });

  test("apt takes the package, and the same bytes", async () => {
    useSource();
    await apt("update");
    const architecture = HOST_TARGET === "linux-x64" ? "amd64" : "arm64";
    await apt("-o", `APT::Architecture=${architecture}`, "download", "bakelite");
    const name = readdirSync(directory.file("packages")).find((file) => file.endsWith(".deb")) ?? "";
    expect(readFileSync(directory.file(name)).equals(readFileSync(directory.file("packages", name)))).toBe(true);
  }, 60_000);

  test("apt refuses another's signature, and a changed list", async () => {
    const stranger = (await gpg("--armor", "--export", "stranger@example.org")).trim().split("\n");
    const asField = stranger.map((line) => ` ${line === "" ? "." : line}`).join("\n");
    // What it has from earlier, it would go on with.
    const forget = () => rmSync(directory.file("apt", "state"), { recursive: true });
    forget();
    useSource((text) => text.replace(/Signed-By:.*$/s, `Signed-By:\n${asField}\n`));
    await expect(apt("update")).rejects.toThrow(/NO_PUBKEY|not signed/);
    forget();
    useSource();
    const list = directory.file("served", "apt", "dists", "stable", "InRelease");
    const before = readFileSync(list, "utf8");
    writeFileSync(list, before.replace("Label: bakelite", "Label: bakelitf"));
    await expect(apt("update")).rejects.toThrow(/BADSIG|not signed|invalid/i);
    writeFileSync(list, before);
  }, 60_000);

  test("the rpm and its index are signed, and a changed byte is noticed", async () => {
    const served = directory.file("served", "rpm");
    const index = join(served, "repodata", "repomd.xml");
    await gpg("--verify", `${index}.asc`, index);
    const root = directory.file("rpm-root");
    mkdirSync(root);
    await runProgram(["rpmkeys", "--root", root, "--import", directory.file("served", "bakelite.asc")]);
    const name = readdirSync(served).find((file) => file.endsWith(".rpm")) ?? "";
    const copy = directory.file("a.rpm");
    cpSync(join(served, name), copy);
    const check = ["rpmkeys", "--root", root, "--define", "_pkgverify_level all", "--checksig", "--verbose"];
    expect(await runProgram([...check, copy])).toMatch(/Signature.*: OK/);
    appendFileSync(copy, "x");
    await expect(runProgram([...check, copy])).rejects.toThrow(/ended with 1/);
  }, 60_000);

  test("without a key, with one that gpg has not, or without packages nothing is made, and what was there stands", async () => {
    mkdirSync(directory.file("empty"));
    expect(await make("nobody@example.org")).toMatchObject({
      status: 1,
      said: expect.stringContaining("no repositories: "),
    });
    expect(await make(SIGNER, directory.file("empty"))).toMatchObject({
      status: 1,
      said: expect.stringContaining("run `npm run packages`"),
    });
    expect(existsSync(directory.file("served", "apt"))).toBe(true);
    expect(existsSync(directory.file("served.new"))).toBe(false);
  }, 60_000);
});
