import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, rmSync, statSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { FileBackend, sweepTemporaryFiles } from "../../src/storage/file.ts";
import { openBackend } from "../../src/storage/open.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { bytesOf, collect, describeBackend, generated, keysOf, text, textOf } from "./conformance.ts";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const NOT_ATOMIC = "without hard links it looks and then renames, as its capabilities say";

describeBackend("file", async () => {
  const directory = await temporaryDirectory("file");
  const options = { type: "file", path: directory.file("backup") } as const;
  return {
    backend: openBackend(options),
    sibling: openBackend(options),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
});

describeBackend(
  "file without hard links",
  async () => {
    const directory = await temporaryDirectory("file");
    return {
      backend: new FileBackend({ path: directory.file("backup"), hardLinks: false }),
      [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
    };
  },
  {
    skips: {
      "lets exactly one of eight racing puts win": NOT_ATOMIC,
      "lets exactly one of eight racing large puts win": NOT_ATOMIC,
    },
  },
);

test("files are 0600 and directories 0700, whatever the umask", async () => {
  await using directory = await temporaryDirectory("file");
  const old = process.umask(0);
  try {
    await new FileBackend({ path: directory.file("backup") }).put("app/full/1.p", text("x"));
  } finally {
    process.umask(old);
  }
  const modes = ["backup", "backup/app", "backup/app/full", "backup/app/full/1.p"].map(
    (path) => statSync(directory.file(path)).mode & 0o7777,
  );
  expect(modes).toEqual([0o700, 0o700, 0o700, 0o600]);
});

test("the backup directory is created, the folder above it never", async () => {
  await using directory = await temporaryDirectory("file");
  const backend = new FileBackend({ path: directory.file("disk", "backup") });
  const unreachable = { code: "storage-unreachable", hint: expect.stringContaining("mount") };
  await expect(backend.put("app/a", text("a"))).rejects.toMatchObject(unreachable);
  await expect(keysOf(backend, "")).rejects.toMatchObject(unreachable);
  await expect(backend.get("app/a")).rejects.toMatchObject(unreachable);
  await expect(backend.stat("app/a")).rejects.toMatchObject(unreachable);
  await expect(backend.delete(["app/a"])).rejects.toMatchObject(unreachable);
  expect(existsSync(directory.file("disk"))).toBe(false);

  mkdirSync(directory.file("disk"));
  expect(await keysOf(backend, "")).toEqual([]);
  expect(await backend.get("app/a")).toBeNull();
  expect(existsSync(directory.file("disk", "backup"))).toBe(false);
  expect(await backend.put("app/a", text("a"))).toBe("stored");
  expect(await textOf(backend, "app/a")).toBe("a");
});

test("a backup directory that disappears is not an empty one, and is not made anew", async () => {
  await using directory = await temporaryDirectory("file");
  const backend = new FileBackend({ path: directory.file("backup") });
  await backend.put("app/a", text("a"));
  rmSync(directory.file("backup"), { recursive: true });
  const gone = { code: "storage-unreachable", message: expect.stringContaining("disappeared") };
  await expect(keysOf(backend, "")).rejects.toMatchObject(gone);
  await expect(backend.get("app/a")).rejects.toMatchObject(gone);
  await expect(backend.put("app/b", text("b"))).rejects.toMatchObject(gone);
  expect(existsSync(directory.file("backup"))).toBe(false);
});

test("a folder inside that was removed is made anew", async () => {
  await using directory = await temporaryDirectory("file");
  const backend = new FileBackend({ path: directory.file("backup") });
  await backend.put("app/L0/a", text("a"));
  rmSync(directory.file("backup", "app"), { recursive: true });
  expect(await backend.put("app/L0/b", text("b"), { ifAbsent: true })).toBe("stored");
  expect(await keysOf(backend, "")).toEqual(["app/L0/b"]);
});

test("a backup path that is a file is refused with the reason", async () => {
  await using directory = await temporaryDirectory("file");
  writeFileSync(directory.file("backup"), "not a directory");
  const backend = new FileBackend({ path: directory.file("backup") });
  await expect(backend.put("app/a", text("a"))).rejects.toMatchObject({
    code: "io",
    subject: directory.file("backup"),
  });
  await expect(keysOf(backend, "")).rejects.toMatchObject({ code: "io" });
});

test("an error names the file, the reason and the next step", async () => {
  await using directory = await temporaryDirectory("file");
  const backend = new FileBackend({ path: directory.file("backup") });
  await backend.put("app/a", text("a"));
  await expect(backend.put("app/a/b", text("b"))).rejects.toMatchObject({
    code: "io",
    message: expect.stringContaining("a file is where a directory should be"),
    subject: expect.stringContaining(directory.file("backup", "app", "a")),
    hint: expect.stringContaining("move"),
  });
  await expect(backend.put(`app/${"x".repeat(300)}`, text("b"))).rejects.toMatchObject({
    code: "io",
    message: expect.stringContaining("too long"),
  });
});

test("what is not an object of ours is not listed: temporary files, links, pipes", async () => {
  await using directory = await temporaryDirectory("file");
  const backend = new FileBackend({ path: directory.file("backup") });
  await backend.put("app/a", text("a"));
  writeFileSync(directory.file("outside"), "secret");
  mkdirSync(directory.file("elsewhere"));
  writeFileSync(directory.file("elsewhere", "b"), "secret");
  writeFileSync(directory.file("backup", "app", ".tmp-0123"), "half");
  symlinkSync(directory.file("outside"), directory.file("backup", "app", "link"));
  symlinkSync(directory.file("elsewhere"), directory.file("backup", "linked"));
  Bun.spawnSync(["mkfifo", directory.file("backup", "app", "pipe")]);
  expect(await keysOf(backend, "")).toEqual(["app/a"]);
  await expect(keysOf(backend, "linked/")).rejects.toMatchObject({ code: "io" });
  await expect(backend.get("app/link")).rejects.toMatchObject({ code: "io" });
  await expect(backend.get("linked/b")).rejects.toMatchObject({ code: "io" });
  await expect(backend.put("linked/c", text("c"))).rejects.toMatchObject({ code: "io" });
  await expect(backend.delete(["linked/b"])).rejects.toMatchObject({ code: "io" });
  expect(readdirSync(directory.file("elsewhere"))).toEqual(["b"]);
  await expect(backend.stat("app/link")).rejects.toMatchObject({ code: "io" });
  if (existsSync(directory.file("backup", "app", "pipe"))) expect(await backend.get("app/pipe")).toBeNull();
  await expect(backend.get("app/.tmp-0123")).rejects.toMatchObject({ code: "internal" });
});

test("no descriptor stays open, however a stream or a put ends", async () => {
  await using directory = await temporaryDirectory("file");
  const backend = new FileBackend({ path: directory.file("backup") });
  await backend.put("app/a", generated(1, 2_000_000, 100_000));
  const openBefore = readdirSync("/proc/self/fd").length;
  for (let i = 0; i < 20; i++) {
    for await (const _piece of (await backend.get("app/a")) ?? []) break;
    await bytesOf(backend, "app/a", { start: 0, end: 10 });
    const abort = new AbortController();
    const stream = await backend.get("app/a", { signal: abort.signal });
    abort.abort();
    await expect(collect(stream ?? [])).rejects.toMatchObject({ code: "interrupted" });
    const broken = { ...generated(1, 500_000, 100_000), sizeBytes: 1 };
    await expect(backend.put("app/b", broken)).rejects.toMatchObject({ code: "io" });
  }
  expect(readdirSync("/proc/self/fd").length).toBeLessThanOrEqual(openBefore);
  expect(readdirSync(directory.file("backup", "app"))).toEqual(["a"]);
});

test("the sweep removes temporary files older than the limit, and nothing else", async () => {
  await using directory = await temporaryDirectory("file");
  const path = directory.file("backup");
  const backend = new FileBackend({ path });
  await backend.put("app/L0/a", text("a"));
  const nowMs = Date.now();
  const files = { "app/L0/.tmp-old": 25, "app/L0/.tmp-young": 23, ".tmp-old": 100, "app/old": 1000 };
  for (const [name, ageHours] of Object.entries(files)) {
    writeFileSync(directory.file("backup", name), "12345");
    const time = (nowMs - ageHours * HOUR_MS) / 1000;
    utimesSync(directory.file("backup", name), time, time);
  }
  mkdirSync(directory.file("elsewhere"));
  writeFileSync(directory.file("elsewhere", ".tmp-old"), "12345");
  utimesSync(directory.file("elsewhere", ".tmp-old"), 1000, 1000);
  symlinkSync(directory.file("elsewhere"), directory.file("backup", "linked"));
  expect(await sweepTemporaryFiles({ path, olderThanMs: DAY_MS, nowMs })).toEqual({
    removedCount: 2,
    removedBytes: 10,
  });
  expect(readdirSync(directory.file("backup", "app", "L0")).toSorted()).toEqual([".tmp-young", "a"]);
  expect(readdirSync(directory.file("elsewhere"))).toEqual([".tmp-old"]);
  expect(await keysOf(backend, "")).toEqual(["app/L0/a", "app/old"]);
  expect(await sweepTemporaryFiles({ path: directory.file("never"), olderThanMs: DAY_MS, nowMs })).toEqual({
    removedCount: 0,
    removedBytes: 0,
  });
});

test("of eight processes that put one key exactly one wins", async () => {
  await using directory = await temporaryDirectory("file");
  const path = directory.file("backup");
  const racers = Array.from({ length: 8 }, (_, i) => startProcess("race", path, "app/L0/1", String(i)));
  const lines = racers.map((racer) => linesOf(racer.stdout));
  for (const racer of lines) expect((await racer.next()).value).toBe("ready");
  for (const racer of racers) await racer.stdin.write("go\n");
  for (const racer of racers) await racer.stdin.flush();
  const outcomes = await Promise.all(lines.map(async (racer) => (await racer.next()).value));
  expect(outcomes.toSorted()).toEqual([...Array.from({ length: 7 }, () => "exists"), "stored"]);
  expect(await textOf(new FileBackend({ path }), "app/L0/1")).toBe(String(outcomes.indexOf("stored")));
  expect(await Promise.all(racers.map((racer) => racer.exited))).toEqual(Array.from({ length: 8 }, () => 0));
}, 60_000);

test("a process killed in the middle of a put leaves no visible object", async () => {
  await using directory = await temporaryDirectory("file");
  const path = directory.file("backup");
  const child = startProcess("put-slowly", path, "app/L0/1");
  expect((await linesOf(child.stdout).next()).value).toBe("writing");
  child.kill("SIGKILL");
  await child.exited;
  const backend = new FileBackend({ path });
  expect(await keysOf(backend, "")).toEqual([]);
  expect(await backend.get("app/L0/1")).toBeNull();
  expect(readdirSync(directory.file("backup", "app", "L0"))).toHaveLength(1);
  expect(await sweepTemporaryFiles({ path, olderThanMs: DAY_MS, nowMs: Date.now() + 2 * DAY_MS })).toMatchObject({
    removedCount: 1,
  });
  expect(await backend.put("app/L0/1", text("again"), { ifAbsent: true })).toBe("stored");
});

test("after a kill at any moment every visible object is whole, and everything reported is there", async () => {
  const random = seededRandom(21);
  for (let round = 0; round < 8; round++) {
    await using directory = await temporaryDirectory("file");
    const path = directory.file("backup");
    const child = startProcess("put-forever", path);
    const reported: number[] = [];
    const lines = linesOf(child.stdout);
    reported.push(Number((await lines.next()).value));
    setTimeout(() => child.kill("SIGKILL"), random.integer(0, 40));
    for await (const line of lines) reported.push(Number(line));
    await child.exited;
    const backend = new FileBackend({ path });
    const keys = await keysOf(backend, "app/L0/");
    for (const number of reported) expect(keys).toContain(`app/L0/${number}`);
    expect(keys.length - reported.length).toBeLessThanOrEqual(1);
    for (const key of keys) {
      const expected = Buffer.concat(await collect(generated(Number(key.slice(7)), 1_000_000, 100_000).open()));
      expect(Buffer.compare(await bytesOf(backend, key), expected)).toBe(0);
    }
  }
}, 60_000);

test("an object of 512 MiB passes in bounded memory", async () => {
  await using directory = await temporaryDirectory("file");
  const child = startProcess("large", directory.file("backup"), String(512 * 1024 * 1024));
  const peakBytes = Number((await linesOf(child.stdout).next()).value);
  expect(peakBytes).toBeGreaterThan(0);
  expect(peakBytes).toBeLessThan(256 * 1024 * 1024);
}, 120_000);

const immutable = await whyNot(async (path) => {
  mkdirSync(`${path}/d`);
  run("chattr", "+i", `${path}/d`);
  run("chattr", "-i", `${path}/d`);
});

test.skipIf(immutable !== null)(
  `a directory that may not be changed is storage-denied${because(immutable)}`,
  async () => {
    await using directory = await temporaryDirectory("file");
    const backend = new FileBackend({ path: directory.file("backup") });
    await backend.put("app/a", text("a"));
    run("chattr", "+i", directory.file("backup", "app"));
    try {
      await expect(backend.put("app/b", text("b"))).rejects.toMatchObject({ code: "storage-denied" });
      await expect(backend.put("app/a", text("b"))).rejects.toMatchObject({ code: "storage-denied" });
      await expect(backend.delete(["app/a"])).rejects.toMatchObject({ code: "storage-denied" });
    } finally {
      run("chattr", "-i", directory.file("backup", "app"));
    }
    expect(await textOf(backend, "app/a")).toBe("a");
  },
);

const mounting = await whyNot(async (path) => {
  run("mount", "-t", "tmpfs", "-o", "size=64k", "bakelite-test", path);
  run("umount", path);
});

test.skipIf(mounting !== null)(
  `a read-only file system is storage-denied and can still be read${because(mounting)}`,
  async () => {
    await using disk = await mountDisk("1m");
    const backend = new FileBackend({ path: disk.path });
    await backend.put("app/a", text("a"));
    run("mount", "-o", "remount,ro", disk.path);
    const denied = { code: "storage-denied", message: expect.stringContaining("read-only") };
    await expect(backend.put("app/b", text("b"))).rejects.toMatchObject(denied);
    await expect(backend.delete(["app/a"])).rejects.toMatchObject(denied);
    expect(await textOf(backend, "app/a")).toBe("a");
    expect(await keysOf(backend, "")).toEqual(["app/a"]);
  },
);

test.skipIf(mounting !== null)(
  `a full disk is storage-full, leaves nothing, and works again once there is room${because(mounting)}`,
  async () => {
    await using disk = await mountDisk("512k");
    const backend = new FileBackend({ path: disk.path });
    await backend.put("app/a", generated(1, 200_000, 50_000));
    const full = { code: "storage-full", hint: expect.stringContaining("df -h") };
    for (const options of [{}, { ifAbsent: true }])
      await expect(backend.put("app/b", generated(2, 600_000, 50_000), options)).rejects.toMatchObject(full);
    await expect(backend.put("app/a", generated(2, 600_000, 50_000))).rejects.toMatchObject(full);
    expect(await keysOf(backend, "")).toEqual(["app/a"]);
    expect(readdirSync(`${disk.path}/app`)).toEqual(["a"]);
    expect(await bytesOf(backend, "app/a")).toHaveLength(200_000);
    await backend.delete(["app/a"]);
    expect(await backend.put("app/b", generated(2, 400_000, 50_000))).toBe("stored");
  },
);

test.skipIf(mounting !== null)(
  `an unmounted disk is unreachable, and nothing is written below it${because(mounting)}`,
  async () => {
    await using disk = await mountDisk("1m");
    const backend = new FileBackend({ path: disk.path });
    await backend.put("app/a", text("a"));
    run("umount", disk.path);
    const unmounted = { code: "storage-unreachable", message: expect.stringContaining("no longer a mounted disk") };
    await expect(backend.put("app/b", text("b"))).rejects.toMatchObject(unmounted);
    await expect(keysOf(backend, "")).rejects.toMatchObject(unmounted);
    await expect(backend.get("app/a")).rejects.toMatchObject(unmounted);
    await expect(backend.delete(["app/a"])).rejects.toMatchObject(unmounted);
    expect(readdirSync(disk.path)).toEqual([]);
    run("mount", "-t", "tmpfs", "bakelite-test", disk.path);
    expect(await keysOf(backend, "")).toEqual([]);
  },
);

const mounted = new Set<string>();
afterAll(() => {
  for (const path of mounted) Bun.spawnSync(["umount", "-l", path]);
});

/** A small file system of its own. */
async function mountDisk(size: string): Promise<AsyncDisposable & { readonly path: string }> {
  const directory = await temporaryDirectory("disk");
  const path = directory.file("disk");
  mkdirSync(path);
  run("mount", "-t", "tmpfs", "-o", `size=${size}`, "bakelite-test", path);
  mounted.add(path);
  return {
    path,
    async [Symbol.asyncDispose]() {
      Bun.spawnSync(["umount", "-l", path]);
      mounted.delete(path);
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** Tries what a test needs from the machine; the reason when it cannot be had. */
async function whyNot(attempt: (path: string) => Promise<void>): Promise<string | null> {
  await using directory = await temporaryDirectory("probe");
  try {
    await attempt(directory.path);
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

function because(reason: string | null): string {
  return reason === null ? "" : ` (${reason})`;
}

function run(...command: string[]): void {
  const result = Bun.spawnSync(command);
  if (result.exitCode !== 0) throw new Error(`${command.join(" ")}: ${result.stderr.toString().trim()}`);
}

function startProcess(...args: string[]) {
  return Bun.spawn([process.execPath, `${import.meta.dir}/file-process.ts`, ...args], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string, void> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
}
