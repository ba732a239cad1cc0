import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdir, readdir, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Backend } from "../../src/storage/backend.ts";
import { withRetry } from "../../src/storage/retry.ts";
import { FaultProxy } from "../faults/proxy.ts";
import { runProgram } from "../servers/programs.ts";
import { openTable, type SshdServer, sftpServerPath, startSshd } from "../servers/sshd.ts";
import { eventually, withDeadline } from "../support/eventually.ts";
import { bytesOf, collect, generated, keysOf, text, textOf } from "./conformance.ts";

const MIB = 1024 * 1024;

let server: SshdServer;
beforeAll(async () => {
  server = await startSshd();
});
afterAll(() => server[Symbol.asyncDispose]());

async function through(proxy: FaultProxy, path: string, timeout: string): Promise<Backend> {
  return openTable(await server.tableThrough(proxy.port, path, { timeout }));
}

function patiently(backend: Backend): Backend {
  return withRetry(backend, { retries: 20, baseMs: 10, capMs: 200, maxElapsedMs: 30_000 });
}

describe("an SFTP server that goes away", () => {
  test("is connected to again after its restart", async () => {
    const backend = server.open(server.newPath());
    await backend.put("app/a", text("a"));
    await server.kill();
    await expect(backend.stat("app/a")).rejects.toMatchObject({ code: "storage-unreachable" });
    await server.start();
    expect(await textOf(patiently(backend), "app/a")).toBe("a");
  });

  test("in the middle of a put and a get leaves only whole objects, and retries get there", async () => {
    const backend = patiently(server.open(server.newPath()));
    const body = generated(31, 24 * MIB, MIB);
    let pieceCount = 0;
    const disturbed = {
      ...body,
      async *open() {
        for await (const piece of body.open()) {
          if (++pieceCount === 10) await server.killSessions();
          yield piece;
        }
      },
    };
    expect(await backend.put("app/full/1", disturbed, { ifAbsent: true })).toBe("stored");
    expect(pieceCount).toBeGreaterThan(24);
    let readBytes = 0;
    for await (const piece of (await backend.get("app/full/1")) ?? []) {
      if (readBytes < 4 * MIB && readBytes + piece.byteLength >= 4 * MIB) await server.killSessions();
      readBytes += piece.byteLength;
    }
    expect(readBytes).toBe(24 * MIB);
    expect(await keysOf(backend, "")).toEqual(["app/full/1"]);
  });

  test.each(["reset", "end", "stall"] as const)(
    "a line that meets %s is unreachable within its timeout",
    async (how) => {
      await using proxy = await FaultProxy.start({ targetPort: server.port, protocol: "tcp" });
      const backend = await through(proxy, server.newPath(), "1s");
      for (const [direction, afterBytes] of [
        ["to-client", 500],
        ["to-server", 200_000],
      ] as const) {
        proxy.cutNext({ direction, afterBytes, how });
        const put = backend.put("app/a", generated(32, 4 * MIB, MIB), { ifAbsent: true });
        await expect(withDeadline(put, { what: "the put to fail" })).rejects.toMatchObject({
          code: "storage-unreachable",
        });
      }
      expect(await keysOf(backend, "")).toEqual([]);
      expect(await patiently(backend).put("app/a", text("a"), { ifAbsent: true })).toBe("stored");
    },
  );

  test("a slow line is no failure, however long it takes", async () => {
    await using proxy = await FaultProxy.start({ targetPort: server.port, protocol: "tcp" });
    const backend = await through(proxy, server.newPath(), "1s");
    await backend.put("app/a", text("a"));
    proxy.bytesPerSecond = MIB;
    const startMs = performance.now();
    expect(await backend.put("app/b", generated(33, 3 * MIB, MIB))).toBe("stored");
    expect(performance.now() - startMs).toBeGreaterThan(1500);
    expect(await bytesOf(backend, "app/b")).toHaveLength(3 * MIB);
  });

  test("an abort does not wait for a server that hangs", async () => {
    await using proxy = await FaultProxy.start({ targetPort: server.port, protocol: "tcp" });
    const backend = await through(proxy, server.newPath(), "60s");
    await backend.put("app/a", text("a"));
    await proxy.beginOutage("hang");
    const abort = new AbortController();
    const { signal } = abort;
    const calls = [
      backend.stat("app/a", { signal }),
      backend.put("app/b", text("b"), { signal }),
      backend.delete(["app/a"], { signal }),
      collect(backend.list("", { signal })),
      backend.get("app/a", { signal }),
    ];
    abort.abort();
    const ended = await withDeadline(Promise.allSettled(calls), { what: "the calls to end", deadlineMs: 5000 });
    expect(ended.map((each) => each.status === "rejected" && each.reason.code)).toEqual(calls.map(() => "interrupted"));
  });
});

test("all databases with the same server and login share one connection", async () => {
  await using own = await startSshd({ lines: ["MaxSessions 1", "MaxStartups 3:100:3"] });
  const backends = Array.from({ length: 50 }, () => own.open(own.newPath()));
  await Promise.all(backends.map((backend) => backend.put("app/a", text("a"))));
  expect(await own.sessionCount()).toBe(1);
});

describe("what an SFTP server cannot do", () => {
  const without = (extensions: string) => startSshd({ sftp: `${sftpServerPath()} -P ${extensions}` });

  test("without hard links a taken name is still refused, and the capabilities say how", async () => {
    await using own = await without("hardlink");
    const backend = own.open(own.newPath());
    expect(await backend.put("app/a", text("one"), { ifAbsent: true })).toBe("stored");
    expect(backend.capabilities.putIfAbsent).toBe(false);
    expect(await backend.put("app/a", text("two"), { ifAbsent: true })).toBe("exists");
    expect(await textOf(backend, "app/a")).toBe("one");
    expect(await backend.diagnose?.()).toContainEqual(
      expect.objectContaining({ check: "conditional writes", level: "warn" }),
    );
  });

  test("without posix-rename and fsync objects are stored and replaced", async () => {
    await using own = await without("posix-rename,fsync,statvfs");
    const backend = own.open(own.newPath());
    await backend.put("app/a", text("one"));
    await backend.put("app/a", text("two"));
    expect(await textOf(backend, "app/a")).toBe("two");
    const warned = (await backend.diagnose?.())?.filter(({ level }) => level === "warn").map(({ check }) => check);
    expect(warned).toEqual(["replacing", "durable writes"]);
  });

  test("one that is read-only is `storage-denied`, and can be read", async () => {
    await using own = await startSshd({ sftp: `${sftpServerPath()} -R` });
    await mkdir(join(own.dataPath, "app"));
    await writeFile(join(own.dataPath, "app", "a"), "a");
    const backend = own.open(own.dataPath);
    expect(await textOf(backend, "app/a")).toBe("a");
    await expect(backend.put("app/b", text("b"))).rejects.toMatchObject({ code: "storage-denied" });
    await expect(backend.delete(["app/a"])).rejects.toMatchObject({ code: "storage-denied" });
  });
});

const isRoot = process.geteuid?.() === 0;
test.skipIf(!isRoot)("a full disk is `storage-full` and leaves nothing (needs root, for a tmpfs)", async () => {
  const path = server.file("small");
  await mkdir(path);
  await runProgram(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path]);
  try {
    const backend = server.open(path);
    await backend.put("app/a", text("a"));
    for (const options of [{}, { ifAbsent: true }])
      await expect(backend.put("app/large", generated(34, 12 * MIB, MIB), options)).rejects.toMatchObject({
        code: "storage-full",
      });
    expect((await readdir(path, { recursive: true })).toSorted()).toEqual(["app", "app/a"]);
    await runProgram(["mount", "-o", "remount,ro", path]);
    await expect(backend.put("app/b", text("b"))).rejects.toMatchObject({
      code: "storage-denied",
      message: expect.stringContaining("read-only"),
    });
  } finally {
    await runProgram(["umount", "-l", path]);
  }
});

describe("the directory on an SFTP server", () => {
  test("is made when only it is missing, and its parent never is", async () => {
    const path = server.newPath();
    const backend = server.open(path);
    expect(await keysOf(backend, "")).toEqual([]);
    await expect(stat(path)).rejects.toThrow();
    await backend.put("app/a", text("a"));
    expect(((await stat(path)).mode & 0o777).toString(8)).toBe("700");
    expect(((await stat(join(path, "app/a"))).mode & 0o777).toString(8)).toBe("600");
    const lost = server.open(`${server.newPath()}/below`);
    for (const call of [
      () => lost.put("a", text("a")),
      () => keysOf(lost, ""),
      () => lost.stat("a"),
      () => lost.delete(["a"]),
    ])
      await expect(call()).rejects.toMatchObject({ code: "storage-unreachable" });
  });

  test("that disappears is unreachable, not empty", async () => {
    const path = server.newPath();
    const backend = server.open(path);
    await backend.put("app/a", text("a"));
    await runProgram(["mv", path, `${path}-away`]);
    for (const call of [
      () => backend.stat("app/a"),
      () => backend.get("app/a"),
      () => keysOf(backend, ""),
      () => backend.put("a", text("a")),
    ])
      await expect(call()).rejects.toMatchObject({ code: "storage-unreachable" });
    await runProgram(["mv", `${path}-away`, path]);
    expect(await keysOf(backend, "")).toEqual(["app/a"]);
  });

  test("links below it are not followed", async () => {
    const path = server.newPath();
    const backend = server.open(path);
    await backend.put("app/a", text("a"));
    await runProgram(["ln", "-s", "/tmp", join(path, "elsewhere")]);
    await runProgram(["ln", "-s", "a", join(path, "app/link")]);
    await expect(backend.put("elsewhere/a", text("a"))).rejects.toMatchObject({ code: "io" });
    expect(await backend.get("app/link")).toBeNull();
    expect(await keysOf(backend, "")).toEqual(["app/a"]);
  });

  test("holds the temporary files of crashed puts until they are swept", async () => {
    const path = server.newPath();
    const backend = server.open(path);
    await backend.put("app/L0/1", text("a"));
    const old = join(path, "app/L0/.tmp-000000000000000000000000");
    await writeFile(old, "12345");
    await utimes(old, 1_000_000_000, 1_000_000_000);
    expect(await keysOf(backend, "")).toEqual(["app/L0/1"]);
    const found = await collect((await backend.unlisted?.uploads("app/")) ?? []);
    expect(found).toMatchObject([{ key: "app/L0/.tmp-000000000000000000000000", sizeBytes: 5 }]);
    expect(found[0]?.ageMs).toBeGreaterThan(365 * 86_400_000);
    for (const upload of found) expect(await backend.unlisted?.abortUpload(upload)).toBe("aborted");
    expect(await readdir(join(path, "app/L0"))).toEqual(["1"]);
  });

  test("a temporary file that is being written is in no sweep", async () => {
    const path = server.newPath();
    const backend = server.open(path);
    const { promise: go, resolve } = Promise.withResolvers<void>();
    const put = backend.put("app/a", {
      sizeBytes: undefined,
      replayable: false,
      async *open() {
        yield new Uint8Array(100_000);
        await go;
      },
    });
    const live = async () => (await readdir(join(path, "app"))).some((name) => name.startsWith(".tmp-"));
    await eventually(live, { what: "the temporary file" });
    expect(await collect((await backend.unlisted?.uploads("")) ?? [])).toEqual([]);
    resolve();
    expect(await put).toBe("stored");
  });
});
