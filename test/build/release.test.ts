import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cp, readdir, readFile, symlink, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import packageJson from "../../package.json" with { type: "json" };
import { makeTarGz } from "../../packaging/archive.ts";
import { describeExecutable } from "../../packaging/binary-format.ts";
import { findObjections } from "../../packaging/release-checks.ts";
import { chooseRunner } from "../../packaging/runner.ts";
import { smoke } from "../../packaging/smoke-run.ts";
import { hostTargetName, TARGETS } from "../../packaging/targets.ts";
import { executablePath } from "../support/executable.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

const ROOT = resolve(import.meta.dir, "../..");
const TIMEOUT_MS = 120_000;
const SOURCE = ["src", "packaging", "package.json", "package-lock.json", "tsconfig.json", "LICENSE", "README.md"];

async function run(command: readonly string[], cwd: string, env: Readonly<Record<string, string>> = {}) {
  const child = Bun.spawn([...command], {
    cwd,
    env: { ...process.env, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { stdout, stderr, status };
}

describe("what is in the way of a release", () => {
  const changelog = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-02-01\n\n* A thing.\n";
  const facts = { version: "1.2.3", commit: "0123456789ab", changelog };
  const strict = { dirty: false, unreleased: false };

  test("is nothing when commit, version and changelog agree", () => {
    expect(findObjections(facts, strict)).toEqual([]);
  });

  test("is a tree that differs from its commit, or none, unless that is allowed", () => {
    for (const commit of ["0123456789ab-modified", ""]) {
      expect(findObjections({ ...facts, commit }, strict)).toEqual([expect.stringContaining("--allow-dirty")]);
      expect(findObjections({ ...facts, commit }, { ...strict, dirty: true })).toEqual([]);
    }
  });

  test("is a version that the changelog does not have, unless that is allowed", () => {
    const next = { ...facts, version: "1.3.0" };
    expect(findObjections(next, strict)).toEqual([expect.stringContaining("no heading `## [1.3.0]")]);
    expect(findObjections(next, { ...strict, unreleased: true })).toEqual([]);
  });

  test("is a changelog that is ahead, or says no day, whatever is allowed", () => {
    const all = { dirty: true, unreleased: true };
    expect(findObjections({ ...facts, version: "1.2.2" }, all)).toEqual([expect.stringContaining("has 1.2.3 already")]);
    expect(findObjections({ ...facts, changelog: "## [1.2.3]\n" }, all)).toEqual([expect.stringContaining("no day")]);
  });

  test("is not that a pre-release has its changes under Unreleased, if there are any", () => {
    const version = "1.3.0-rc.1";
    expect(findObjections({ ...facts, version }, strict)).toHaveLength(1);
    const written = changelog.replace("## [Unreleased]\n", "## [Unreleased]\n\n### Added\n\n* More.\n");
    expect(findObjections({ ...facts, version, changelog: written }, strict)).toEqual([]);
  });
});

test("an archive is what tar makes of it, with nothing of this machine in it", async () => {
  await using directory = await temporaryDirectory("archive");
  const bytes = new TextEncoder().encode("x".repeat(1_000));
  const files = [
    { name: "a/run", mode: 0o755, bytes },
    { name: "a/empty", mode: 0o644, bytes: new Uint8Array() },
  ];
  const archive = makeTarGz(files, 1_700_000_000);
  await writeFile(directory.file("a.tar.gz"), archive);
  const listed = await run(["tar", "-tvzf", "a.tar.gz", "--numeric-owner"], directory.path, { TZ: "UTC" });
  expect(listed.stdout.replace(/ +/g, " ").trim().split("\n")).toEqual([
    "-rwxr-xr-x 0/0 1000 2023-11-14 22:13 a/run",
    "-rw-r--r-- 0/0 0 2023-11-14 22:13 a/empty",
  ]);
  expect((await run(["tar", "-xzf", "a.tar.gz"], directory.path)).status).toBe(0);
  expect(await readFile(directory.file("a", "run"), "utf8")).toBe("x".repeat(1_000));
  expect(archive.subarray(4, 10)).toEqual(new Uint8Array([0, 0, 0, 0, archive[8] ?? 0, 255]));
  expect(() => makeTarGz([{ name: "n".repeat(101), mode: 0o644, bytes }], 0)).toThrow("ustar");
});

test("an executable is held against what it is to be", async () => {
  const bytes = await readFile(executablePath());
  const target = hostTargetName();
  expect(describeExecutable(bytes, TARGETS[target].triple)).toMatch(/x86_64|arm64/);
  for (const [name, { triple }] of Object.entries(TARGETS))
    if (name !== target) expect(() => describeExecutable(bytes, triple)).toThrow(triple);
});

test(
  "the executable backs up, lists, restores and verifies a database",
  async () => {
    const steps = await smoke([executablePath()], hostTargetName());
    expect(steps.map((step) => step.split(":")[0])).toEqual([
      "version",
      "--help",
      "config",
      "daemon",
      "list",
      "restore",
      "verify --deep",
    ]);
  },
  TIMEOUT_MS,
);

test("a program that does not do that fails at the step that shows it, in its own words", async () => {
  await expect(smoke(["sh", "-c", "echo out of order >&2; exit 3", "sh"], hostTargetName())).rejects.toThrow(
    "version: bakelite version ended with status 3:\nout of order",
  );
  await expect(smoke(["echo"], hostTargetName())).rejects.toThrow(`version: it does not say "${packageJson.version}"`);
});

const arm64 = chooseRunner("linux-arm64");
if (!arm64.canRun) console.log(`note: the executable for linux-arm64 was not run: ${arm64.reason}`);

test.skipIf(!arm64.canRun)(
  "the executable for arm64 tells its version under an emulator",
  async () => {
    await using directory = await temporaryDirectory("arm64");
    const outfile = directory.file("bakelite");
    const built = await run(
      [process.execPath, "packaging/build.ts", "--target", "linux-arm64", "--outfile", outfile],
      ROOT,
    );
    expect([built.status, built.stderr]).toEqual([0, ""]);
    const told = await run([...(arm64.canRun ? arm64.command : []), outfile, "version"], directory.path);
    expect([told.status, told.stdout]).toEqual([0, expect.stringContaining(TARGETS["linux-arm64"].triple)]);
  },
  TIMEOUT_MS,
);

const oldProcessor = process.arch === "x64" ? Bun.which("qemu-x86_64-static") : null;
if (oldProcessor === null) console.log("note: not tried on an old x64 processor: qemu-x86_64-static is not installed");

test.skipIf(oldProcessor === null)(
  "the executable for x64 backs up and restores on a processor of 2008, without AVX",
  async () => {
    await smoke([oldProcessor ?? "", "-cpu", "Nehalem", executablePath()], hostTargetName());
  },
  TIMEOUT_MS,
);

describe("two releases of the same source, in two folders", () => {
  let places: readonly TemporaryDirectory[] = [];
  let ends: readonly Awaited<ReturnType<typeof run>>[] = [];
  const target = hostTargetName();
  const archive = `bakelite-${packageJson.version}-${target}.tar.gz`;

  beforeAll(async () => {
    places = await Promise.all(["one", "two-longer"].map((name) => temporaryDirectory(`release-${name}`)));
    ends = await Promise.all(
      places.map(async ({ path }) => {
        for (const name of SOURCE) await cp(join(ROOT, name), join(path, name), { recursive: true });
        await writeFile(join(path, "CHANGELOG.md"), `## [${packageJson.version}] - 2026-01-31\n`);
        await symlink(join(ROOT, "node_modules"), join(path, "node_modules"));
        return run([process.execPath, "packaging/release.ts", "--targets", target, "--allow-dirty"], path, {
          SOURCE_DATE_EPOCH: "1700000000",
        });
      }),
    );
  }, TIMEOUT_MS);

  afterAll(async () => {
    for (const place of places) await place[Symbol.asyncDispose]();
  });

  test("are the same bytes, say the same of themselves, and leave nothing else", async () => {
    for (const { stdout, stderr, status } of ends) {
      expect([status, stderr]).toEqual([0, ""]);
      expect(stdout).toContain("built and ran, 7 steps (native)");
    }
    const files = ["SHA256SUMS", archive, "manifest.json"];
    for (const { path } of places) expect((await readdir(join(path, "dist/release"))).sort()).toEqual(files);
    for (const file of files) {
      const [one, two] = await Promise.all(places.map(({ path }) => readFile(join(path, "dist/release", file))));
      expect(one?.equals(two ?? Buffer.alloc(0))).toBe(true);
    }
  });

  test("are confirmed by sha256sum, and unpack to one folder", async () => {
    const folder = join(places[0]?.path ?? "", "dist/release");
    expect(await run(["sha256sum", "-c", "SHA256SUMS"], folder)).toMatchObject({
      stdout: `${archive}: OK\n`,
      status: 0,
    });
    const inside = archive.replace(".tar.gz", "");
    expect((await run(["tar", "-tzf", archive], folder)).stdout.trim().split("\n")).toEqual([
      `${inside}/bakelite`,
      `${inside}/LICENSE`,
      `${inside}/README.md`,
      `${inside}/THIRD-PARTY-NOTICES.md`,
    ]);
    const { files, version } = JSON.parse(await readFile(join(folder, "manifest.json"), "utf8"));
    expect(version).toBe(packageJson.version);
    expect(files).toEqual([
      {
        name: archive,
        target,
        triple: TARGETS[target].triple,
        size_bytes: (await readFile(join(folder, archive))).length,
        sha256: expect.stringMatching(/^[0-9a-f]{64}$/),
      },
    ]);
  });

  test("a target that does not exist, or a registry that does not answer, is told in a sentence", async () => {
    const { path } = places[1] ?? { path: "" };
    const release = [process.execPath, "packaging/release.ts", "--allow-dirty", "--targets"];
    expect(await run([...release, "vax"], path)).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/^no release: unknown target vax; known: linux-x64, .*\n$/),
    });
    const env = {
      npm_config_registry: "http://127.0.0.1:9",
      npm_config_fetch_retries: "0",
      npm_config_cache: join(path, "npm"),
    };
    expect(await run([...release, "darwin-arm64"], path, env)).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(
        /^no release: cannot fetch Bun's runtime for darwin-arm64, .* \(ECONNREFUSED\): .*\n$/,
      ),
    });
    expect((await readdir(join(path, "dist/release"))).filter((name) => name.startsWith("."))).toEqual([]);
  });
});
