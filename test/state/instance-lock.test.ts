import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import {
  chownSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { acquireInstanceLock, findLockHolder } from "../../src/state/instance-lock.ts";
import type { Logger } from "../../src/util/logger.ts";
import { silentLogger } from "../../src/util/logger.ts";
import { withDeadline } from "../support/eventually.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const asRoot = process.geteuid?.() === 0;

test("a second process is refused at once, and told who holds the lock", async () => {
  await using directory = await temporaryDirectory("lock");
  const path = directory.file("app.db");
  await using lock = await acquireInstanceLock(path);
  expect(lock.databasePath).toBe(path);
  expect(lock.lockPath).toBe(directory.file(".bakelite", "app.db.lock"));
  expect(await lock.isInPlace()).toBe(true);
  const startMs = performance.now();
  await using second = await startHolder(path);
  expect(second.firstLine).toBe(`refused locked: process ${process.pid} already follows this database`);
  expect(performance.now() - startMs).toBeLessThan(5_000);
  expect(await findElsewhere(path)).toBe(String(process.pid));
});

test("plain SQLite without a busy timeout is refused the lock file, and let in after release", async () => {
  await using directory = await temporaryDirectory("lock");
  const path = directory.file("app.db");
  const lock = await acquireInstanceLock(path);
  const program = `
    import { Database } from "bun:sqlite";
    const db = new Database(${JSON.stringify(lock.lockPath)});
    db.run("PRAGMA busy_timeout = 0");
    try { db.run("BEGIN EXCLUSIVE"); console.log("in"); } catch (error) { console.log(error.code); }`;
  const attempt = () => Bun.spawnSync([process.execPath, "-e", program]).stdout.toString().trim();
  expect(attempt()).toBe("SQLITE_BUSY");
  await lock.release();
  expect(attempt()).toBe("in");
});

test("the kernel releases the lock of a process that is killed", async () => {
  await using directory = await temporaryDirectory("lock");
  const path = directory.file("app.db");
  for (let round = 0; round < 3; round++) {
    const holder = await startHolder(path);
    expect(holder.firstLine).toBe(`locked ${holder.pid}`);
    expect(await findLockHolder(path)).toEqual({ pid: holder.pid });
    await expect(acquireInstanceLock(path)).rejects.toMatchObject({
      code: "locked",
      message: `process ${holder.pid} already follows this database`,
      subject: path,
      hint: "stop it first, or remove the second entry for this file",
    });
    await holder[Symbol.asyncDispose]();
    expect(await findLockHolder(path)).toBeNull();
    await using _ours = await acquireInstanceLock(path);
  }
});

test("a second lock in one process is refused, and neither that nor looking costs the first one", async () => {
  await using directory = await temporaryDirectory("lock");
  const path = directory.file("app.db");
  writeFileSync(path, "");
  symlinkSync(path, directory.file("other.db"));
  await using lock = await acquireInstanceLock(path);
  for (let i = 0; i < 3; i++) {
    await expect(acquireInstanceLock(path)).rejects.toMatchObject({
      code: "locked",
      message: expect.stringContaining("this process"),
    });
    await expect(acquireInstanceLock(directory.file("other.db"))).rejects.toMatchObject({ code: "locked" });
    expect(await findLockHolder(path)).toEqual({ pid: process.pid });
  }
  expect(await findElsewhere(path)).toBe(String(process.pid));
  await lock.release();
  await lock.release();
  expect(await lock.isInPlace()).toBe(false);
  expect(await findElsewhere(path)).toBe("nobody");
  await using again = await acquireInstanceLock(path);
  expect(await again.isInPlace()).toBe(true);
});

test("attempts at the same time in one process give one lock, which the others do not cost", async () => {
  for (let round = 0; round < 5; round++) {
    await using directory = await temporaryDirectory("lock");
    const path = directory.file("app.db");
    const looks = Array.from({ length: 5 }, () => findLockHolder(path));
    const attempts = Array.from({ length: 5 }, () => acquireInstanceLock(path));
    const results = await Promise.allSettled([...attempts, ...looks]);
    const locks = (await Promise.allSettled(attempts)).flatMap((r) => (r.status === "fulfilled" ? [r.value] : []));
    expect(results).toHaveLength(10);
    expect(locks).toHaveLength(1);
    expect(await findElsewhere(path)).toBe(String(process.pid));
    await locks[0]?.release();
    expect(await findElsewhere(path)).toBe("nobody");
  }
});

test("another thread of this process is refused, and does not cost the lock", async () => {
  await using directory = await temporaryDirectory("lock");
  const path = directory.file("app.db");
  await using _lock = await acquireInstanceLock(path);
  const worker = new Worker(new URL("./lock-worker.ts", import.meta.url).href);
  try {
    const answer = new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = (event) => reject(new Error(event.message));
    });
    worker.postMessage(path);
    expect(await withDeadline(answer, { what: "the worker's answer" })).toEqual({
      found: { pid: process.pid },
      taken: expect.stringContaining("this process already follows"),
    });
  } finally {
    worker.terminate();
  }
  expect(await findElsewhere(path)).toBe(String(process.pid));
});

test("links to one database file meet at one lock, two files in one folder do not", async () => {
  await using directory = await temporaryDirectory("lock");
  mkdirSync(directory.file("real"));
  mkdirSync(directory.file("link"));
  const path = directory.file("real", "app.db");
  symlinkSync("../real/app.db", directory.file("link", "app.db"));
  symlinkSync(directory.file("real"), directory.file("folder"));
  await using lock = await acquireInstanceLock(directory.file("link", "app.db"));
  expect(lock.databasePath).toBe(path);
  expect(existsSync(directory.file("link", ".bakelite"))).toBe(false);
  for (const other of [path, directory.file("folder", "app.db"), directory.file("link", "app.db")]) {
    await using refused = await startHolder(other);
    expect(refused.firstLine).toStartWith("refused locked");
  }
  // The file was made after the lock: still the same database.
  writeFileSync(path, "");
  expect(await findElsewhere(directory.file("link", "app.db"))).toBe(String(process.pid));
  await using _other = await acquireInstanceLock(directory.file("real", "other.db"));
});

test("of eight processes that start at once exactly one gets the lock, also when the lock file is garbage", async () => {
  for (const garbage of [null, seededRandom(1).bytes(5_000)]) {
    await using directory = await temporaryDirectory("lock");
    const path = directory.file("app.db");
    if (garbage !== null) {
      mkdirSync(directory.file(".bakelite"));
      writeFileSync(directory.file(".bakelite", "app.db.lock"), garbage);
    }
    const holders = await Promise.all(Array.from({ length: 8 }, () => startHolder(path)));
    try {
      const lines = holders.map((holder) => holder.firstLine);
      expect(lines.filter((line) => line.startsWith("locked"))).toHaveLength(1);
      expect(lines.filter((line) => line.startsWith("refused locked"))).toHaveLength(7);
    } finally {
      await Promise.all(holders.map((holder) => holder[Symbol.asyncDispose]()));
    }
  }
}, 60_000);

test("a damaged lock file is emptied with a warning and used", async () => {
  const damaged: [string, Uint8Array][] = [
    ["garbage", seededRandom(2).bytes(4_096)],
    ["text", new TextEncoder().encode("4711\n")],
    ["a header alone", new TextEncoder().encode("SQLite format 3\0".padEnd(100, "\x01"))],
    ["a large file", new Uint8Array(1_000_000).fill(0x61)],
  ];
  for (const [, bytes] of damaged) {
    await using directory = await temporaryDirectory("lock");
    const path = directory.file("app.db");
    mkdirSync(directory.file(".bakelite"));
    writeFileSync(directory.file(".bakelite", "app.db.lock"), bytes);
    expect(await findLockHolder(path)).toBeNull();
    expect(Buffer.compare(readFileSync(directory.file(".bakelite", "app.db.lock")), bytes)).toBe(0);
    const warnings: string[] = [];
    const log: Logger = { ...silentLogger, warn: (message) => warnings.push(message) };
    await using _lock = await acquireInstanceLock(path, log);
    expect(warnings).toEqual([expect.stringContaining("lock file was damaged")]);
    expect(await findElsewhere(path)).toBe(String(process.pid));
  }
});

test("a lock file damaged under its holder still locks, and still names him", async () => {
  await using directory = await temporaryDirectory("lock");
  const path = directory.file("app.db");
  await using holder = await startHolder(path);
  expect(holder.firstLine).toBe(`locked ${holder.pid}`);
  writeFileSync(directory.file(".bakelite", "app.db.lock"), "overwritten by somebody");
  await expect(acquireInstanceLock(path)).rejects.toMatchObject({
    code: "locked",
    message: expect.stringContaining(`process ${holder.pid}`),
  });
  expect(await findLockHolder(path)).toEqual({ pid: holder.pid });
  expect(readFileSync(directory.file(".bakelite", "app.db.lock"), "utf8")).toBe("overwritten by somebody");
});

test("the holder can tell that its lock file was removed or replaced", async () => {
  await using directory = await temporaryDirectory("lock");
  const path = directory.file("app.db");
  await using lock = await acquireInstanceLock(path);
  rmSync(directory.file(".bakelite"), { recursive: true });
  expect(await lock.isInPlace()).toBe(false);
  await using second = await startHolder(path);
  expect(second.firstLine).toStartWith("locked");
  expect(await lock.isInPlace()).toBe(false);
});

test("looking for a holder writes nothing and creates nothing", async () => {
  await using directory = await temporaryDirectory("lock");
  const path = directory.file("app.db");
  expect(await findLockHolder(path)).toBeNull();
  expect(await findLockHolder(directory.file("none", "app.db"))).toBeNull();
  expect(readdirSync(directory.path)).toEqual([]);
  await (await acquireInstanceLock(path)).release();
  const before = statSync(directory.file(".bakelite", "app.db.lock"), { bigint: true });
  expect(await findLockHolder(path)).toBeNull();
  const after = statSync(directory.file(".bakelite", "app.db.lock"), { bigint: true });
  expect([after.mtimeNs, after.ctimeNs, after.size]).toEqual([before.mtimeNs, before.ctimeNs, before.size]);
  expect(readdirSync(directory.file(".bakelite"))).toEqual(["app.db.lock"]);
});

test("a look in passing does not make a starting daemon give up", async () => {
  await using directory = await temporaryDirectory("lock");
  const path = directory.file("app.db");
  const { lockPath, release } = await acquireInstanceLock(path);
  await release();
  // What findLockHolder does for an instant in another process, held for longer here.
  using reader = new Database(lockPath, { readonly: true });
  reader.run("BEGIN");
  reader.query("PRAGMA user_version").get();
  const starting = startHolder(path);
  await Bun.sleep(300);
  reader.run("COMMIT");
  await using holder = await starting;
  expect(holder.firstLine).toBe(`locked ${holder.pid}`);
});

test("the directory is 0700 and the lock file 0600, and a missing folder is not-found", async () => {
  await using directory = await temporaryDirectory("lock");
  const old = process.umask(0);
  try {
    await using _lock = await acquireInstanceLock(directory.file("app.db"));
  } finally {
    process.umask(old);
  }
  expect(statSync(directory.file(".bakelite")).mode & 0o7777).toBe(0o700);
  expect(statSync(directory.file(".bakelite", "app.db.lock")).mode & 0o7777).toBe(0o600);
  await expect(acquireInstanceLock(directory.file("none", "app.db"))).rejects.toMatchObject({ code: "not-found" });
  expect(existsSync(directory.file("none"))).toBe(false);
});

test("a link in the place of the lock file or its directory is refused, and what it points to left alone", async () => {
  await using directory = await temporaryDirectory("lock");
  writeFileSync(directory.file("precious"), "precious");
  mkdirSync(directory.file(".bakelite"));
  symlinkSync(directory.file("precious"), directory.file(".bakelite", "app.db.lock"));
  await expect(acquireInstanceLock(directory.file("app.db"))).rejects.toMatchObject({ code: "io" });
  expect(readFileSync(directory.file("precious"), "utf8")).toBe("precious");

  mkdirSync(directory.file("data"));
  mkdirSync(directory.file("elsewhere"));
  symlinkSync(directory.file("elsewhere"), directory.file("data", ".bakelite"));
  await expect(acquireInstanceLock(directory.file("data", "app.db"))).rejects.toMatchObject({ code: "io" });
  expect(readdirSync(directory.file("elsewhere"))).toEqual([]);
});

test.skipIf(!asRoot)("run as root, directory and lock file belong to the database's owner", async () => {
  await using directory = await temporaryDirectory("lock");
  const path = directory.file("app.db");
  writeFileSync(path, "");
  chownSync(path, 12_345, 23_456);
  await using _lock = await acquireInstanceLock(path);
  for (const file of [".bakelite", ".bakelite/app.db.lock"]) {
    const { uid, gid } = statSync(directory.file(file));
    expect([uid, gid]).toEqual([12_345, 23_456]);
  }
});

test("two hard links to one file in one folder are two names, and so two locks", async () => {
  // SQLite itself cannot tell them apart either: each name gets its own -wal, and the file is damaged whoever backs it up.
  await using directory = await temporaryDirectory("lock");
  writeFileSync(directory.file("app.db"), "");
  linkSync(directory.file("app.db"), directory.file("twin.db"));
  await using _one = await acquireInstanceLock(directory.file("app.db"));
  await using _two = await acquireInstanceLock(directory.file("twin.db"));
});

interface Holder extends AsyncDisposable {
  readonly pid: number;
  readonly firstLine: string;
}

/** A process that tries for the lock; killed when disposed. */
async function startHolder(databasePath: string): Promise<Holder> {
  const child = spawn("hold", databasePath);
  let firstLine = "";
  for await (const chunk of child.stdout) {
    firstLine += new TextDecoder().decode(chunk);
    if (firstLine.includes("\n")) break;
  }
  return {
    pid: child.pid,
    firstLine: firstLine.trim(),
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

async function findElsewhere(databasePath: string): Promise<string> {
  const child = spawn("find", databasePath);
  return (await new Response(child.stdout).text()).trim();
}

function spawn(verb: "hold" | "find", databasePath: string) {
  return Bun.spawn([process.execPath, `${import.meta.dir}/lock-process.ts`, verb, databasePath], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
}
