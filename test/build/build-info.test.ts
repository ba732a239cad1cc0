import { expect, test } from "bun:test";
import packageJson from "../../package.json" with { type: "json" };
import { readProvenance } from "../../packaging/provenance.ts";
import { hostTargetName, TARGETS } from "../../packaging/targets.ts";
import { buildInfo } from "../../src/util/build-info.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const AUTHOR = { GIT_AUTHOR_NAME: "a", GIT_AUTHOR_EMAIL: "a@example.org" };
const COMMITTER = { GIT_COMMITTER_NAME: "a", GIT_COMMITTER_EMAIL: "a@example.org" };
const DATES = { GIT_AUTHOR_DATE: "2024-02-28T23:30:00-05:00", GIT_COMMITTER_DATE: "2024-02-28T23:30:00-05:00" };

function git(folder: string, ...args: readonly string[]): string {
  const env = { ...process.env, ...AUTHOR, ...COMMITTER, ...DATES };
  const result = Bun.spawnSync(["git", "-C", folder, ...args], { env, stdin: "ignore" });
  if (!result.success) throw new Error(result.stderr.toString());
  return result.stdout.toString().trim();
}

test("source code knows its version and its machine, and no build", () => {
  expect(buildInfo).toEqual({
    version: packageJson.version,
    date: null,
    commit: null,
    targetTriple: TARGETS[hostTargetName()].triple,
    compiled: false,
  });
});

test("a build takes the UTC day and the id of the commit, and says when the tree is modified", async () => {
  await using clone = await temporaryDirectory("clone");
  git(clone.path, "init", "--quiet");
  await Bun.write(clone.file("CHANGELOG.md"), "## [1.2.3] - 2023-04-05\n");
  git(clone.path, "add", ".");
  git(clone.path, "commit", "--quiet", "--message", "first");
  const id = git(clone.path, "rev-parse", "--short=12", "HEAD");
  expect(readProvenance(clone.path, "1.2.3")).toEqual({ date: "2024-02-29", commit: id });
  await Bun.write(clone.file("new.ts"), "");
  expect(readProvenance(clone.path, "1.2.3")).toEqual({ date: "2024-02-29", commit: `${id}-modified` });
});

test("a build from a source archive takes the day from the changelog", async () => {
  await using repository = await temporaryDirectory("archive");
  git(repository.path, "init", "--quiet");
  git(repository.path, "commit", "--quiet", "--allow-empty", "--message", "another project");
  await Bun.write(repository.file("unpacked/CHANGELOG.md"), "## [Unreleased]\n\n## [1.2.3] - 2023-04-05\n");
  expect(readProvenance(repository.file("unpacked"), "1.2.3")).toEqual({ date: "2023-04-05", commit: "" });
  expect(readProvenance(repository.file("unpacked"), "1.2.4")).toEqual({ date: "", commit: "" });
});

test("SOURCE_DATE_EPOCH goes before everything else, and must be a number of seconds", async () => {
  await using archive = await temporaryDirectory("archive");
  await Bun.write(archive.file("CHANGELOG.md"), "## [1.2.3] - 2023-04-05\n");
  const before = process.env["SOURCE_DATE_EPOCH"];
  try {
    process.env["SOURCE_DATE_EPOCH"] = "1700000000";
    expect(readProvenance(archive.path, "1.2.3").date).toBe("2023-11-14");
    process.env["SOURCE_DATE_EPOCH"] = "yesterday";
    expect(() => readProvenance(archive.path, "1.2.3")).toThrow('SOURCE_DATE_EPOCH is "yesterday"');
  } finally {
    if (before === undefined) delete process.env["SOURCE_DATE_EPOCH"];
    else process.env["SOURCE_DATE_EPOCH"] = before;
  }
});
