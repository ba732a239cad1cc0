import { afterAll, beforeAll, expect, test } from "bun:test";
import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { fillInstaller, makeSite } from "../../packaging/site.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

let directory: TemporaryDirectory;
let key: KeyObject;

beforeAll(async () => {
  directory = await temporaryDirectory("site");
  key = generateKeyPairSync("ec", { namedCurve: "prime256v1" }).privateKey;
  mkdirSync(directory.file("release", "bakelite-1.0.0"), { recursive: true });
  writeFileSync(directory.file("release", "bakelite-1.0.0", "bakelite"), "#!/bin/sh\necho 'bakelite 1.0.0'\n");
  chmodSync(directory.file("release", "bakelite-1.0.0", "bakelite"), 0o755);
  for (const target of ["linux-x64", "linux-arm64"])
    Bun.spawnSync(["tar", "-czf", `bakelite-1.0.0-${target}.tar.gz`, "bakelite-1.0.0"], {
      cwd: directory.file("release"),
    });
  writeFileSync(directory.file("release", "manifest.json"), "{}");
});

afterAll(() => directory[Symbol.asyncDispose]());

const options = (baseUrl: string) => ({
  sources: [directory.file("release"), directory.file("none")],
  out: directory.file("site"),
  version: "1.0.0",
  baseUrl,
  key,
});

test("the installer of a release needs nothing but itself: address, key and signature are in place", async () => {
  using server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: (request) => {
      const path = directory.file("site", new URL(request.url).pathname);
      return existsSync(path) ? new Response(Bun.file(path)) : new Response("", { status: 404 });
    },
  });
  await makeSite(options(`http://127.0.0.1:${server.port}`));
  expect(readdirSync(directory.file("site"), { recursive: true }).sort()).toEqual([
    "1.0.0",
    "1.0.0/SHA256SUMS",
    "1.0.0/SHA256SUMS.sig",
    "1.0.0/bakelite-1.0.0-linux-arm64.tar.gz",
    "1.0.0/bakelite-1.0.0-linux-x64.tar.gz",
    "install.sh",
    "latest",
  ]);
  const child = Bun.spawn(["sh", directory.file("site", "install.sh"), "--prefix", directory.file("opt")], {
    env: { PATH: process.env["PATH"], HOME: directory.path },
    stderr: "pipe",
  });
  expect(await child.stderr.text()).toContain("installed bakelite 1.0.0");
  expect(await child.exited).toBe(0);
});

test("an address that a shell would read as more than a text is refused, and so is an empty release", async () => {
  for (const address of ['https://x/"; rm -rf ~; "', "https://x/$(id)", "ftp://x", "https://x/`id`"])
    await expect(makeSite(options(address))).rejects.toThrow("no plain web address");
  await expect(makeSite({ ...options("https://x"), sources: [] })).rejects.toThrow("nothing to serve");
});

test("an installer without the places to fill in is noticed", () => {
  expect(() => fillInstaller("#!/bin/sh\n", { baseUrl: "https://x", publicKey: "k" })).toThrow("DEFAULT_BASE_URL");
});
