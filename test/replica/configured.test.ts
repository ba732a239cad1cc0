import { afterAll, beforeAll, expect, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { loadConfig } from "../../src/config/load.ts";
import type { DatabaseConfig } from "../../src/config/types.ts";
import { chooseDestination } from "../../src/replica/configured.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

let directory: TemporaryDirectory;
let database: DatabaseConfig;

beforeAll(async () => {
  directory = await temporaryDirectory("configured");
  const path = directory.file("bakelite.toml");
  const backends = [
    `type = "sftp"\nhost = "backup.example"\nuser = "u"\npath = "/far"\npassword = "x"`,
    `type = "file"\npath = ${JSON.stringify(directory.file("mirror"))}\nasync = true`,
    `type = "file"\npath = ${JSON.stringify(directory.file("near"))}`,
  ];
  const tables = backends.map((backend) => `[[database.backends]]\n${backend}\n`).join("");
  await writeFile(path, `[[database]]\nname = "app"\npath = "/nowhere/app.db"\n${tables}`);
  const [only] = (await loadConfig(path, {})).databases;
  if (only === undefined) throw new Error("the configuration has no database");
  database = only;
});

afterAll(() => directory[Symbol.asyncDispose]());

test("a destination is chosen by its number, its location, or a type that no other one has", () => {
  const [sftp, mirror, near] = database.backends;
  expect(chooseDestination(database, "1")).toBe(sftp as never);
  expect(chooseDestination(database, "2")).toBe(mirror as never);
  expect(chooseDestination(database, "sftp")).toBe(sftp as never);
  expect(chooseDestination(database, directory.file("near"))).toBe(near as never);
  expect(chooseDestination(database, `${directory.file("near")}/`)).toBe(near as never);
});

test("what stands for none of them, or for several, is refused with all that there are", () => {
  for (const wanted of ["0", "4", "-1", "", "/", "/elsewhere", "FILE"])
    expect(() => chooseDestination(database, wanted)).toThrow(`${JSON.stringify(wanted)} is none of its destinations`);
  expect(() => chooseDestination(database, "file")).toThrow('"file" stands for 2 destinations');
  try {
    chooseDestination(database, "4");
  } catch (error) {
    const [near, mirror] = [directory.file("near"), directory.file("mirror")];
    const [far = ""] = /1 \(\S+\)/.exec(String((error as { hint?: string }).hint)) ?? [];
    expect(far).toContain("backup.example");
    expect(error).toMatchObject({ code: "usage", hint: `one of ${far}, 2 (${mirror}, a mirror), 3 (${near})` });
  }
});
