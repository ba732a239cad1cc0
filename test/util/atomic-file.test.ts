import { expect, test } from "bun:test";
import { chmod, mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { syncDirectory, writeFileAtomically } from "../../src/util/atomic-file.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

async function thrownBy(work: Promise<unknown>): Promise<unknown> {
  return await work.then(
    () => undefined,
    (error: unknown) => error,
  );
}

test("a new file has the content and is for its owner only", async () => {
  await using directory = await temporaryDirectory();
  const path = directory.file("app.cursor");
  await writeFileAtomically(path, "grüße");
  expect(await readFile(path, "utf8")).toBe("grüße");
  expect((await stat(path)).mode & 0o7777).toBe(0o600);
  expect(await readdir(directory.path)).toEqual(["app.cursor"]);
});

test("an existing file is replaced as a whole, with the mode that was asked for whatever the umask", async () => {
  await using directory = await temporaryDirectory();
  const path = directory.file("config");
  await writeFile(path, "a much longer content than the new one");
  await chmod(path, 0o400);
  const oldMask = process.umask(0o077);
  try {
    await writeFileAtomically(path, new Uint8Array([1, 2, 3]), { mode: 0o644 });
  } finally {
    process.umask(oldMask);
  }
  expect(await readFile(path)).toEqual(Buffer.from([1, 2, 3]));
  expect((await stat(path)).mode & 0o7777).toBe(0o644);
});

test.if(process.getuid?.() === 0)("the owner is set before the file appears", async () => {
  await using directory = await temporaryDirectory();
  const path = directory.file("key.txt");
  await writeFileAtomically(path, "x", { owner: { uid: 12_345, gid: 23_456 } });
  expect(await stat(path)).toMatchObject({ uid: 12_345, gid: 23_456 });
});

test("many writers at once leave one of their contents and nothing else", async () => {
  await using directory = await temporaryDirectory();
  const contents = Array.from({ length: 20 }, (_, i) => String(i).repeat(100_000));
  await Promise.all(contents.map((content) => writeFileAtomically(directory.file("f"), content)));
  expect(contents).toContain(await readFile(directory.file("f"), "utf8"));
  expect(await readdir(directory.path)).toEqual(["f"]);
});

test("a failed rename leaves what stood there and no temporary file", async () => {
  await using directory = await temporaryDirectory();
  await mkdir(directory.file("taken", "inside"), { recursive: true });
  expect(await thrownBy(writeFileAtomically(directory.file("taken"), "x"))).toBeInstanceOf(BakeliteError);
  expect(await readdir(directory.path)).toEqual(["taken"]);
});

test("a full disk keeps the old file and is named as such", async () => {
  await using directory = await temporaryDirectory();
  await writeFile(directory.file("f"), "old");
  // A process of its own: the limit on file sizes cuts the first write short and fails the second.
  const script = `
    const { writeFileAtomically } = await import("${import.meta.dir}/../../src/util/atomic-file.ts");
    process.on("SIGXFSZ", () => {});
    try { await writeFileAtomically(${JSON.stringify(directory.file("f"))}, "x".repeat(100_000)); console.log("written"); }
    catch (error) { console.log(error.code, error.cause.code); }`;
  const shell = Bun.spawn(["sh", "-c", 'ulimit -f 8; exec "$0" -e "$1"', process.execPath, script], { stdout: "pipe" });
  expect((await new Response(shell.stdout).text()).trim()).toBe("io EFBIG");
  expect(await readFile(directory.file("f"), "utf8")).toBe("old");
  expect(await readdir(directory.path)).toEqual(["f"]);
});

test("a missing directory is `not-found` and names the path", async () => {
  await using directory = await temporaryDirectory();
  const path = directory.file("absent", "f");
  expect(await thrownBy(writeFileAtomically(path, "x"))).toMatchObject({ code: "not-found", subject: path });
});

test("syncDirectory accepts any directory", async () => {
  await using directory = await temporaryDirectory();
  expect(await thrownBy(syncDirectory(directory.path))).toBeUndefined();
});
