import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import packageJson from "../../package.json" with { type: "json" };
import { findDifference, staleReason } from "../../packaging/dependencies.mjs";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const ROOT = resolve(import.meta.dir, "../..");

describe("package-lock.json", () => {
  const lock = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8"));
  const packages = Object.entries<{ integrity?: string; optionalDependencies?: object }>(lock.packages);

  test("says what to install and never from where", () => {
    expect(JSON.stringify(lock)).not.toContain('"resolved"');
    expect(JSON.stringify(lock)).not.toMatch(/https?:\/\/[^"]*\.tgz/);
  });

  test("has an integrity hash for every package", () => {
    const without = packages.filter(([path, { integrity }]) => path !== "" && !integrity?.startsWith("sha512-"));
    expect(without.map(([path]) => path)).toEqual([]);
  });

  test("has every platform's part of every package, so that it installs on all of them", () => {
    const wanted = packages.flatMap(([, { optionalDependencies }]) => Object.keys(optionalDependencies ?? {}));
    expect(wanted.length).toBeGreaterThan(0);
    expect(wanted.filter((name) => lock.packages[`node_modules/${name}`] === undefined)).toEqual([]);
  });
});

test("package.json pins every dependency to one version", () => {
  const versions = Object.values({ ...packageJson.dependencies, ...packageJson.devDependencies });
  for (const version of versions) expect(version).toMatch(/^\d+\.\d+\.\d+$/);
  expect(packageJson.dependencies.bun).toBe(Bun.version);
});

describe("the check for missing dependencies", () => {
  const locked = {
    "": { version: "0.1.0" },
    "node_modules/a": { version: "1.0.0", integrity: "sha512-a" },
    "node_modules/other-platform": { version: "1.0.0", integrity: "sha512-o", optional: true },
  };
  const a = { version: "1.0.0", integrity: "sha512-a" };

  test("is content with the locked versions, without the parts for other platforms", () => {
    expect(findDifference(locked, { "node_modules/a": a })).toBeNull();
  });

  test("names what is absent, of another version, of other content, or too much", () => {
    expect(findDifference(locked, {})).toBe("node_modules/a is not installed");
    expect(findDifference(locked, { "node_modules/a": { ...a, version: "0.9.0" } })).toContain("asks for 1.0.0");
    expect(findDifference(locked, { "node_modules/a": { ...a, integrity: "sha512-b" } })).toContain("node_modules/a");
    expect(findDifference(locked, { "node_modules/a": a, "node_modules/b": a })).toContain("node_modules/b");
  });

  test("asks for an installation on a fresh clone, and for none here", async () => {
    await using clone = await temporaryDirectory("clone");
    expect(staleReason(clone.path)).toBe("dependencies are not installed");
    expect(staleReason(ROOT)).toBeNull();
  });
});
