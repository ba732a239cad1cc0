import { expect, test } from "bun:test";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { deriveSealKey, parseKeyText } from "../../src/format/envelope.ts";
import { runBakelite } from "../oracle/daemon-process.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const keygen = (...args: readonly string[]) => runBakelite("executable", ["keygen", ...args]);
const fingerprintOf = (text: string) => deriveSealKey(parseKeyText(text)).fingerprint;

test("keygen prints one line with a new key each time; everything else is on standard error", async () => {
  const [first, second] = [await keygen(), await keygen("--verbose")];
  expect([first.status, second.status]).toEqual([0, 0]);
  expect(first.stdout).toMatch(/^BAKELITE-KEY-V1-[0-9A-Z]{56}\n$/);
  expect(second.stdout).not.toBe(first.stdout);
  expect(first.stderr).toContain(`fingerprint: ${fingerprintOf(first.stdout)}\n`);
  expect(first.stderr).toContain("keep a copy of the key off this host");
  expect(second.stderr).not.toContain(second.stdout.slice(20, 40));
});

test("keygen --output writes a private file, prints no key, and never overwrites one", async () => {
  await using directory = await temporaryDirectory("keygen");
  const path = directory.file("key.txt");
  const made = await keygen("--output", path);
  expect([made.status, made.stdout]).toEqual([0, ""]);
  const text = readFileSync(path, "utf8");
  expect(statSync(path).mode & 0o7777).toBe(0o600);
  expect(made.stderr).toContain(`wrote a new key to ${path}\nfingerprint: ${fingerprintOf(text)}\n`);
  expect(made.stderr).not.toContain(text.slice(20, 40));
  const again = await keygen("--output", path);
  expect([again.status, again.stdout]).toEqual([1, ""]);
  expect(again.stderr).toContain(`the file exists, and a key is never overwritten (${path})`);
  expect(readFileSync(path, "utf8")).toBe(text);
  const orphan = await keygen("--output", directory.file("no", "key.txt"));
  expect([orphan.status, orphan.stderr]).toEqual([1, expect.stringContaining(`(${directory.file("no")})`)]);
  expect(readdirSync(directory.path)).toEqual(["key.txt"]);
});

test("keygen --json is one document, with the key only where it goes to standard output", async () => {
  await using directory = await temporaryDirectory("keygen");
  const { key, fingerprint, output } = JSON.parse((await keygen("--json")).stdout);
  expect([fingerprint, output]).toEqual([fingerprintOf(key), null]);
  const path = directory.file("key.txt");
  const toFile = JSON.parse((await keygen("--json", "--output", path)).stdout);
  expect(toFile).toEqual({ fingerprint: fingerprintOf(readFileSync(path, "utf8")), output: path, key: null });
});
