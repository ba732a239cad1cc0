import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createKeyFile, describeExposure, keyFileExposure, readKeyFile } from "../../src/config/key-file.ts";
import { formatKeyText } from "../../src/format/envelope.ts";
import { withDeadline } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

const RAW = Uint8Array.from({ length: 32 }, (_, i) => i * 5);
const TEXT = formatKeyText(RAW);
let directory: TemporaryDirectory;

beforeAll(async () => {
  directory = await temporaryDirectory("key-file");
});

afterAll(() => directory[Symbol.asyncDispose]());

async function failure(path: string) {
  const error = await withDeadline(
    readKeyFile(path).then(
      () => null,
      (reason) => reason,
    ),
    { what: `the key file ${path} to be refused`, deadlineMs: 20_000 },
  );
  expect(error).toMatchObject({ code: "key-wrong", subject: path });
  expect(`${error.message} ${error.hint}`).not.toContain(TEXT.slice(20, 30));
  return `${error.message}; ${error.hint}`;
}

describe("a key file", () => {
  test("is read with whatever white space, line ends and byte order mark an editor left", async () => {
    for (const [i, content] of [TEXT, `${TEXT}\n`, `\ufeff${TEXT}\r\n`, `\n\t ${TEXT} \r\n\r\n`].entries()) {
      const path = directory.file(`white-${i}`);
      writeFileSync(path, content);
      expect(await readKeyFile(path)).toEqual(RAW);
    }
  });

  test("that is absent, empty, huge, a directory, a pipe or a device is refused at once, and says what it is", async () => {
    expect(await failure(directory.file("absent"))).toMatch(/^cannot read the key file; check the path in .* the copy/);
    writeFileSync(directory.file("empty"), "");
    expect(await failure(directory.file("empty"))).toMatch(/the file is empty/);
    writeFileSync(directory.file("huge"), TEXT);
    truncateSync(directory.file("huge"), 2 ** 40);
    expect(await failure(directory.file("huge"))).toMatch(/too large for one/);
    mkdirSync(directory.file("folder"));
    expect(await failure(directory.file("folder"))).toMatch(/the key file is a directory/);
    Bun.spawnSync(["mkfifo", directory.file("pipe")]);
    expect(await failure(directory.file("pipe"))).toMatch(/the key file is not a regular file/);
    expect(await failure("/dev/zero")).toMatch(/the key file is not a regular file/);
  });

  test("that holds something else is told from a mistyped key and from one of a later version", async () => {
    const of = async (content: string) => {
      writeFileSync(directory.file("odd"), content);
      return await failure(directory.file("odd"));
    };
    expect(await of("hunter2\n")).toMatch(/^this is not a bakelite key/);
    expect(await of(TEXT.replace("V1", "V2"))).toMatch(/unknown version 2; upgrade bakelite/);
    expect(await of(TEXT.slice(0, -1))).toMatch(/^the key is mistyped: it has 55 digits/);
    expect(await of(`${TEXT.slice(0, 20)}${TEXT[20] === "A" ? "B" : "A"}${TEXT.slice(21)}`)).toMatch(
      /its digit 5 seems/,
    );
  });

  test("is made exclusively, with mode 0600 whatever the umask, and leaves nothing behind when it cannot be", async () => {
    const path = directory.file("new");
    const old = process.umask(0o777);
    try {
      await createKeyFile(path, TEXT);
    } finally {
      process.umask(old);
    }
    expect(statSync(path).mode & 0o7777).toBe(0o600);
    expect(readFileSync(path, "utf8")).toBe(`${TEXT}\n`);
    await expect(createKeyFile(path, TEXT)).rejects.toMatchObject({ code: "output-exists", subject: path });
    symlinkSync(directory.file("nowhere"), directory.file("link"));
    await expect(createKeyFile(directory.file("link"), TEXT)).rejects.toMatchObject({ code: "output-exists" });
    const orphan = directory.file("no", "folder", "key");
    await expect(createKeyFile(orphan, TEXT)).rejects.toMatchObject({
      code: "not-found",
      subject: directory.file("no", "folder"),
    });
    expect(readFileSync(path, "utf8")).toBe(`${TEXT}\n`);
    expect(readdirSync(directory.path).filter((name) => name.includes("nowhere") || name === "no")).toEqual([]);
  });

  test("is exposed when others can read it, or anybody else can write it", async () => {
    const path = directory.file("mode");
    writeFileSync(path, TEXT);
    const exposure = async (mode: number) => {
      chmodSync(path, mode);
      return await keyFileExposure(path);
    };
    for (const mode of [0o600, 0o400, 0o640, 0o440]) expect(await exposure(mode)).toBeNull();
    expect(await exposure(0o644)).toEqual({
      path,
      mode: "0644",
      problem: "every user of this host can read the encryption key",
    });
    expect((await exposure(0o666))?.problem).toContain("read and change");
    expect((await exposure(0o602))?.problem).toContain("every user of this host can change");
    const group = await exposure(0o660);
    expect(group === null ? null : describeExposure(group)).toBe(
      `every member of its group can change the encryption key (mode 0660): run \`chmod 600 ${path}\`, or 640 if a group must read it`,
    );
    expect(await keyFileExposure(directory.file("absent"))).toBeNull();
    expect(await keyFileExposure("/dev/null")).toBeNull();
  });
});
