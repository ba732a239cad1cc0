import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { resolve } from "node:path";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

const SCRIPT = resolve(import.meta.dir, "../../installer/install.sh");
const VERSION = "1.2.3";
const MACHINE = process.arch === "arm64" ? "arm64" : "x64";
/** The name of this machine's archive, as a musl machine has it too. */
const archiveName = (version: string, libc = "") => `bakelite-${version}-linux-${MACHINE}${libc}.tar.gz`;

/** What stands at the release server, by path. `hang`: a request for it is never answered. */
type Served = Map<string, Uint8Array | "hang">;

let directory: TemporaryDirectory;
let server: ReturnType<typeof Bun.serve>;
let release: Served;
let served: Served;
let requested: string[];

beforeAll(async () => {
  directory = await temporaryDirectory("installer");
  server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    idleTimeout: 60,
    fetch(request) {
      const { pathname } = new URL(request.url);
      requested.push(pathname);
      const body = served.get(pathname);
      if (body === "hang") return new Promise<Response>(() => {});
      return body === undefined ? new Response("", { status: 404 }) : new Response(body);
    },
  });
  await openssl(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", directory.file("key.pem")]);
  await openssl(["ec", "-in", directory.file("key.pem"), "-pubout", "-out", directory.file("public.pem")]);
  release = await makeRelease(VERSION);
});

afterAll(async () => {
  await server.stop(true);
  await directory[Symbol.asyncDispose]();
});

let home: TemporaryDirectory;

beforeEach(async () => {
  home = await temporaryDirectory("home");
  mkdirSync(home.file("tmp"));
  served = new Map(release);
  requested = [];
});

afterEach(() => home[Symbol.asyncDispose]());

async function openssl(argv: readonly string[]): Promise<void> {
  const child = Bun.spawn(["openssl", ...argv], { stdout: "ignore", stderr: "pipe" });
  if ((await child.exited) !== 0) throw new Error(await child.stderr.text());
}

/** A release whose executable is a script that says its version. */
async function makeRelease(version: string): Promise<Served> {
  const folder = directory.file(`release-${version}`);
  mkdirSync(`${folder}/bakelite-${version}`, { recursive: true });
  writeFileSync(`${folder}/bakelite-${version}/bakelite`, `#!/bin/sh\necho "bakelite ${version}"\n`);
  chmodSync(`${folder}/bakelite-${version}/bakelite`, 0o755);
  Bun.spawnSync(["tar", "-czf", `${folder}/a.tar.gz`, "-C", folder, `bakelite-${version}`]);
  const archive = new Uint8Array(readFileSync(`${folder}/a.tar.gz`));
  const files: Served = new Map();
  for (const libc of ["", "-musl"]) files.set(`/${version}/${archiveName(version, libc)}`, archive);
  await sign(files, version);
  return files.set("/latest", new TextEncoder().encode(`${version}\n`));
}

/** Makes the list of checksums and its signature anew. */
async function sign(files: Served, version: string): Promise<void> {
  const sums = [...files].flatMap(([path, bytes]) => {
    const name = path.split("/").at(-1) ?? "";
    if (bytes === "hang" || !name.startsWith("bakelite")) return [];
    return [`${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}  ${name}\n`];
  });
  writeFileSync(directory.file("SHA256SUMS"), sums.join(""));
  await openssl([
    "dgst",
    "-sha256",
    "-sign",
    directory.file("key.pem"),
    "-out",
    directory.file("sig"),
    directory.file("SHA256SUMS"),
  ]);
  files.set(`/${version}/SHA256SUMS`, new Uint8Array(readFileSync(directory.file("SHA256SUMS"))));
  files.set(`/${version}/SHA256SUMS.sig`, new Uint8Array(readFileSync(directory.file("sig"))));
}

interface InstallOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** As after `curl … |`. */
  readonly piped?: boolean;
}

function start(argv: readonly string[], { env = {}, piped = false }: InstallOptions = {}) {
  return Bun.spawn(piped ? ["sh", "-s", "--", ...argv] : ["sh", SCRIPT, ...argv], {
    env: {
      PATH: process.env["PATH"],
      HOME: home.path,
      TMPDIR: home.file("tmp"),
      BAKELITE_BASE_URL: `http://127.0.0.1:${server.port}`,
      BAKELITE_PUBLIC_KEY: directory.file("public.pem"),
      ...env,
    },
    stdin: piped ? Bun.file(SCRIPT) : "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: 25_000,
  });
}

async function install(argv: readonly string[], options: InstallOptions = {}) {
  const child = start(argv, options);
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { code: child.exitCode, stdout, stderr };
}

const prefixed = (...more: readonly string[]) => ["--prefix", home.file("opt"), ...more];

/** Nothing but what was there before. */
function expectNothingLeft(): void {
  expect(readdirSync(home.file("tmp"))).toEqual([]);
  expect(readdirSync(home.path)).toEqual(["tmp"]);
}

/** A folder for PATH in which `names` are the real programs, and nothing else is. */
function onlyPrograms(names: readonly string[]): string {
  const folder = directory.file(crypto.randomUUID());
  mkdirSync(folder);
  for (const name of names) {
    const path = Bun.which(name);
    if (path !== null) symlinkSync(path, `${folder}/${name}`);
  }
  return folder;
}

const BASICS = [
  "sh",
  "uname",
  "id",
  "mktemp",
  "cat",
  "rm",
  "grep",
  "head",
  "tail",
  "tr",
  "sed",
  "wc",
  "find",
  "cp",
  "mv",
  "mkdir",
  "chmod",
  "tar",
  "gzip",
  "sha256sum",
];

describe("installing into a folder", () => {
  test("fetches, checks, and leaves the executable and nothing else, twice", async () => {
    for (const options of [{}, { piped: true }]) {
      const outcome = await install(prefixed(), options);
      expect(outcome).toMatchObject({ code: 0, stdout: "" });
      expect(outcome.stderr).toContain(`installed bakelite ${VERSION}`);
      expect(readdirSync(home.file("opt", "bin"))).toEqual(["bakelite"]);
      expect(statSync(home.file("opt", "bin", "bakelite")).mode & 0o777).toBe(0o755);
      expect(readdirSync(home.file("tmp"))).toEqual([]);
    }
  });

  test("with wget in place of curl", async () => {
    if (Bun.which("wget") === null) return console.log("note: there is no wget here, so it was not tried");
    const outcome = await install(prefixed(), { env: { PATH: onlyPrograms([...BASICS, "wget", "openssl"]) } });
    expect(outcome).toMatchObject({ code: 0 });
  });

  test("another version replaces it, and one that does not exist leaves it", async () => {
    await install(prefixed());
    for (const [path, bytes] of await makeRelease("2.0.0-rc.1")) if (path !== "/latest") served.set(path, bytes);
    expect((await install(prefixed("--version", "v2.0.0-rc.1"))).stderr).toContain("installed bakelite 2.0.0-rc.1");
    const missing = await install(prefixed("--version=9.9.9"));
    expect(missing.code).toBe(1);
    expect(missing.stderr).toContain("cannot fetch");
    expect(readFileSync(home.file("opt", "bin", "bakelite"), "utf8")).toContain("2.0.0-rc.1");
  });

  test("--dry-run fetches no archive and changes nothing", async () => {
    const outcome = await install(prefixed("--dry-run"));
    expect(outcome.code).toBe(0);
    expect(outcome.stderr).toContain(`would fetch http://127.0.0.1:${server.port}/${VERSION}/bakelite`);
    expect(requested.filter((path) => path.endsWith(".gz"))).toEqual([]);
    expectNothingLeft();
  });

  test("--uninstall takes it away, and says when there is nothing", async () => {
    await install(prefixed());
    expect((await install(prefixed("--uninstall", "--dry-run"))).stderr).toContain("would remove");
    expect(existsSync(home.file("opt", "bin", "bakelite"))).toBe(true);
    const outcome = await install(prefixed("--uninstall"));
    expect(outcome.code).toBe(0);
    expect(outcome.stderr).toContain("every backup stay");
    expect(existsSync(home.file("opt", "bin", "bakelite"))).toBe(false);
    expect(await install(prefixed("--uninstall"))).toMatchObject({ code: 1 });
  });

  test("on a musl machine its archive is taken", async () => {
    mkdirSync(directory.file("musl", "lib"), { recursive: true });
    writeFileSync(directory.file("musl", "lib", "ld-musl-x86_64.so.1"), "");
    const outcome = await install(prefixed("--dry-run"), { env: { BAKELITE_ROOT: directory.file("musl") } });
    expect(outcome.stderr).toContain("-musl.tar.gz");
  });
});

describe("what is not as it should be", () => {
  const alter = (path: string) => {
    const bytes = new Uint8Array(served.get(path) as Uint8Array);
    bytes[20] = (bytes[20] ?? 0) ^ 1;
    served.set(path, bytes);
  };
  const archive = `/${VERSION}/${archiveName(VERSION)}`;

  test("a wrong checksum installs nothing", async () => {
    alter(archive);
    const outcome = await install(prefixed());
    expect(outcome.code).toBe(1);
    expect(outcome.stderr).toContain("wrong checksum; nothing was installed");
    expectNothingLeft();
  });

  test("a wrong signature installs nothing, and nor does another key's", async () => {
    alter(`/${VERSION}/SHA256SUMS`);
    const changed = await install(prefixed());
    expect(changed.code).toBe(1);
    expect(changed.stderr).toContain("signature of the checksums is wrong; nothing was installed");
    served = new Map(release);
    await openssl(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", directory.file("other.pem")]);
    await openssl(["ec", "-in", directory.file("other.pem"), "-pubout", "-out", directory.file("other-public.pem")]);
    const other = await install(prefixed(), { env: { BAKELITE_PUBLIC_KEY: directory.file("other-public.pem") } });
    expect(other.stderr).toContain("signature of the checksums is wrong");
    expect(requested.filter((path) => path.endsWith(".gz"))).toEqual([]);
    expectNothingLeft();
  });

  test("a signed list of another version does not pass for this one", async () => {
    for (const file of ["SHA256SUMS", "SHA256SUMS.sig"])
      served.set(`/9.0.0/${file}`, served.get(`/${VERSION}/${file}`) ?? "hang");
    const outcome = await install(prefixed("--version", "9.0.0"));
    expect(outcome.code).toBe(1);
    expect(outcome.stderr).toContain("release 9.0.0 has nothing for");
  });

  test("without a network it says what it could not fetch", async () => {
    const outcome = await install(prefixed(), { env: { BAKELITE_BASE_URL: "http://127.0.0.1:9" } });
    expect(outcome.code).toBe(1);
    expect(outcome.stderr).toContain("cannot fetch http://127.0.0.1:9/latest");
    expectNothingLeft();
  });

  test("without openssl it installs nothing, unless told to check the checksum only", async () => {
    const env = { PATH: onlyPrograms([...BASICS, "curl"]) };
    const refused = await install(prefixed(), { env });
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain("--skip-signature");
    expectNothingLeft();
    expect(await install(prefixed("--skip-signature"), { env })).toMatchObject({ code: 0 });
  });

  test.each([
    ["Plan9", "x86_64", "there is no bakelite for Plan9"],
    ["Linux", "riscv64", "there is no bakelite for the processor riscv64"],
  ])("%s on %s is refused by name", async (kernel, machine, says) => {
    const folder = onlyPrograms([...BASICS, "curl", "openssl"].filter((name) => name !== "uname"));
    writeFileSync(`${folder}/uname`, `#!/bin/sh\n[ "$1" = -m ] && echo ${machine} || echo ${kernel}\n`, {
      mode: 0o755,
    });
    const outcome = await install(prefixed(), { env: { PATH: folder } });
    expect(outcome.code).toBe(1);
    expect(outcome.stderr).toContain(says);
    expectNothingLeft();
  });

  test("an executable that does not run here is not installed", async () => {
    writeFileSync(directory.file("bakelite"), "\u007fELF not really", { mode: 0o755 });
    Bun.spawnSync(["tar", "-czf", directory.file("broken.tar.gz"), "-C", directory.path, "bakelite"]);
    served.set(archive, new Uint8Array(readFileSync(directory.file("broken.tar.gz"))));
    await sign(served, VERSION);
    const outcome = await install(prefixed());
    expect(outcome.code).toBe(1);
    expect(outcome.stderr).toContain("does not run here");
    expectNothingLeft();
  });

  test("a folder that cannot be made or written to is told, and nothing is left", async () => {
    writeFileSync(home.file("tmp", "..", "opt"), "a file");
    const outcome = await install(prefixed());
    expect(outcome.code).toBe(1);
    expect(outcome.stderr).toContain("cannot make");
    expect(readdirSync(home.file("tmp"))).toEqual([]);
  });

  test.each([
    [["--colour"], "unknown option"],
    [["--version"], "needs a value"],
    [["--version", "../../etc"], "not a version"],
    [["--prefix="], "HOME"],
  ])("%j is refused", async (argv, says) => {
    const outcome = await install(argv, { env: says === "HOME" ? { BAKELITE_BASE_URL: "http://127.0.0.1:9" } : {} });
    expect(outcome.code).not.toBe(0);
    expect(outcome.stderr).toContain(says === "HOME" ? "cannot fetch" : says);
  });
});

describe.skipIf(process.geteuid?.() !== 0)("no space (as root)", () => {
  test.each(["tmp", "opt"])("on the disk of %s leaves nothing", async (place) => {
    mkdirSync(home.file("opt", "bin"), { recursive: true });
    const mounted = place === "tmp" ? home.file("tmp") : home.file("opt", "bin");
    const filler = new Uint8Array(2 * 1024 * 1024);
    crypto.getRandomValues(filler.subarray(0, 65_536));
    for (let i = 65_536; i < filler.length; i += 65_536) filler.set(filler.subarray(0, 65_536), i);
    mkdirSync(directory.file("big", "bakelite-1"), { recursive: true });
    writeFileSync(
      directory.file("big", "bakelite-1", "bakelite"),
      `#!/bin/sh\necho big\nexit\n${"#".repeat(2 * 1024 * 1024)}`,
      { mode: 0o755 },
    );
    Bun.spawnSync(["tar", "-cf", directory.file("big.tar"), "-C", directory.file("big"), "bakelite-1"]);
    Bun.spawnSync(["gzip", "-kf1", directory.file("big.tar")]);
    served.set(`/${VERSION}/${archiveName(VERSION)}`, new Uint8Array(readFileSync(directory.file("big.tar.gz"))));
    await sign(served, VERSION);
    const mount = Bun.spawnSync(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", mounted]);
    expect(mount.exitCode).toBe(0);
    try {
      const outcome = await install(prefixed());
      expect(outcome.code).toBe(1);
      expect(outcome.stderr).toMatch(/free space/);
      expect(readdirSync(mounted)).toEqual([]);
    } finally {
      Bun.spawnSync(["umount", mounted]);
    }
  });
});

describe("an interruption", () => {
  const places = ["latest", `${VERSION}/SHA256SUMS`, `${VERSION}/SHA256SUMS.sig`, `${VERSION}/${archiveName(VERSION)}`];

  test.each(
    places.flatMap((place) => (["SIGINT", "SIGTERM", "SIGHUP"] as const).map((signal) => [place, signal] as const)),
  )("while %s is fetched, by %s, leaves nothing", async (place, signal) => {
    served.set(`/${place}`, "hang");
    const child = start(prefixed());
    await eventually(() => requested.includes(`/${place}`), { what: `${place} to be asked for` });
    child.kill(signal);
    expect(await child.exited).toBe({ SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[signal]);
    expectNothingLeft();
  });
});

test("shellcheck has nothing to say", async () => {
  if (Bun.which("shellcheck") === null) return console.log("note: there is no shellcheck here, so it was not run");
  const child = Bun.spawn(["shellcheck", "--shell=sh", SCRIPT], { stdout: "pipe" });
  expect(await child.stdout.text()).toBe("");
  expect(await child.exited).toBe(0);
});

test("a script that was cut off while it was fetched does nothing", async () => {
  const whole = readFileSync(SCRIPT, "utf8");
  for (const share of [0.3, 0.6, 0.9, 0.995]) {
    writeFileSync(directory.file("cut.sh"), whole.slice(0, Math.floor(whole.length * share)));
    const child = Bun.spawn(["sh", directory.file("cut.sh"), "--prefix", home.file("opt")], {
      env: {
        PATH: process.env["PATH"],
        HOME: home.path,
        TMPDIR: home.file("tmp"),
        BAKELITE_BASE_URL: `http://127.0.0.1:${server.port}`,
      },
      stdout: "ignore",
      stderr: "ignore",
    });
    await child.exited;
    expectNothingLeft();
  }
});
