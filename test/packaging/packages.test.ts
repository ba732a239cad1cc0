import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, resolve } from "node:path";
import { gunzipSync } from "bun";
import { changesOf, packageVersion } from "../../packaging/package-facts.ts";
import { type PackageFile, packageFiles } from "../../packaging/package-files.ts";
import { inlineRoff, markdownToRoff } from "../../packaging/roff.ts";
import { GLOBAL_OPTIONS } from "../../src/cli/arguments.ts";
import { registry } from "../../src/cli/registry.ts";
import { daemonSchema, databaseSchema, defaultsSchema } from "../../src/config/schema.ts";
import { findProgram, runProgram } from "../servers/programs.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { buildPackages } from "./build-packages.ts";

const ROOT = resolve(import.meta.dir, "../..");
/** An executable of this machine that is small, since what is packed is not what is looked at here. */
const STAND_IN = "/bin/true";
const missing = ["dpkg-deb", "rpmbuild", "rpm"].filter((name) => findProgram(name) === null);
if (missing.length > 0) console.log(`note: packages were not made: there is no ${missing.join(", ")}`);
const judges = ["lintian", "rpmlint"].filter((name) => findProgram(name) !== null);
if (judges.length < 2) console.log(`note: packages were judged by ${judges.join() || "nobody"} of lintian and rpmlint`);

let directory: TemporaryDirectory;
let files: readonly PackageFile[];

beforeAll(async () => {
  directory = await temporaryDirectory("packages");
  files = await packageFiles(new Uint8Array(1), "deb", "2026-01-31");
});

afterAll(() => directory[Symbol.asyncDispose]());

function textOf(path: string): string {
  const file = files.find((candidate) => candidate.path === path);
  if (file === undefined) throw new Error(`the package has no ${path}`);
  return new TextDecoder().decode(path.endsWith(".gz") ? gunzipSync(Uint8Array.from(file.bytes)) : file.bytes);
}

describe("what is in a package", () => {
  test("what the administrator may change is marked so, and nothing else", () => {
    expect(files.filter(({ isConfig }) => isConfig).map(({ path }) => path)).toEqual(
      files.map(({ path }) => path).filter((path) => path.startsWith("/etc/")),
    );
    expect(files.map(({ path }) => path)).toContain("/etc/bakelite/recipes/README.md");
    expect(files.filter(({ mode }) => mode === 0o755).map(({ path }) => path)).toEqual([
      "/usr/bin/bakelite",
      "/usr/lib/bakelite/notify-failure",
    ]);
  });

  test("bakelite(1) has every command with every option, and every example as it is to be typed", async () => {
    const page = textOf("/usr/share/man/man1/bakelite.1.gz").replaceAll("\\-", "-");
    for (const entry of registry) {
      expect(page).toContain(`.SS "bakelite ${entry.name}"`);
      const { options } = await entry.load();
      for (const { name } of [...options, ...GLOBAL_OPTIONS]) expect(page).toContain(`\\fB--${name}\\fR`);
    }
  });

  test("bakelite.toml(5) has every key of the schema", () => {
    const page = textOf("/usr/share/man/man5/bakelite.toml.5.gz").replaceAll("\\-", "-");
    for (const { shape } of [daemonSchema, defaultsSchema, databaseSchema])
      for (const key of Object.keys(shape).filter((name) => !["encryption", "backends"].includes(name)))
        expect(page).toMatch(new RegExp(`^\\\\fB${key}\\\\fR$`, "m"));
  });

  test.skipIf(findProgram("groff") === null)("the typesetter has nothing to say about the manual pages", async () => {
    for (const page of ["man1/bakelite.1", "man5/bakelite.toml.5"]) {
      const path = directory.file(basename(page));
      writeFileSync(path, textOf(`/usr/share/man/${page}.gz`));
      const child = Bun.spawn(["groff", "-man", "-Tutf8", "-ww", "-z", path], { stdout: "pipe", stderr: "pipe" });
      const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
      expect({ page, said: out + err }).toEqual({ page, said: "" });
    }
  });

  test("a shell completes commands, their options, databases and files", async () => {
    const script = directory.file("completion");
    writeFileSync(script, textOf("/usr/share/bash-completion/completions/bakelite"));
    const config = directory.file("chosen.toml");
    writeFileSync(config, '[[database]]\nname = "orders"\n[[database]]\n  name = "users"\n');
    const complete = async (...words: readonly string[]) => {
      const typed = `. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _bakelite; printf '%s\\n' "\${COMPREPLY[@]}"`;
      const child = Bun.spawn(["bash", "-c", typed, "bash", script, "bakelite", ...words], {
        env: { ...process.env, BAKELITE_CONFIG: config },
        stdout: "pipe",
      });
      return (await child.stdout.text()).trim().split("\n");
    };
    expect(await complete("re")).toEqual(["restore", "repair", "reclaim", "reencrypt"]);
    expect(await complete("restore", "--if")).toEqual(["--if-db-not-exists", "--if-replica-exists"]);
    expect(await complete("--json", "status", "--max-v")).toEqual(["--max-verify-age"]);
    expect(await complete("status", "--db", "")).toEqual(["orders", "users"]);
    expect(await complete("status", "--config", `${directory.path}/cho`)).toEqual([config]);
  });

  for (const shell of ["zsh", "fish"])
    test.skipIf(findProgram(shell) === null)(`${shell} takes its completions`, async () => {
      const path = files.map((file) => file.path).find((candidate) => candidate.includes(`/${shell}/`)) ?? "";
      const script = directory.file(basename(path));
      writeFileSync(script, textOf(path));
      await runProgram([shell, "-n", script]);
    });

  test("the notices have a license of every package inside, and of what is linked into Bun", () => {
    const notices = textOf("/usr/share/doc/bakelite/THIRD-PARTY-NOTICES.md.gz");
    for (const name of ["zod", "ssh2", "@noble/ciphers", "tweetnacl", "JavaScriptCore"])
      expect(notices).toContain(name);
    for (const left of ["typescript", "cpu-features", "fast-check"]) expect(notices).not.toContain(`## ${left} `);
    expect(notices).toMatch(/LGPL/);
  });
});

describe("words that become something else", () => {
  test("Markdown becomes manual pages", () => {
    expect(inlineRoff("see [`a.b`](c.md#d) -- **not `x`** 'y' \\n")).toBe(
      "see \\fBa.b\\fR \\-\\- \\fBnot \\fBx\\fB\\fR \\(aqy\\(aq \\en",
    );
    expect(markdownToRoff("## A `b`\n\none\ntwo\n\n* x\n  y\n* z\n\n```toml\n.a = 1\n\nb\n```\n")).toBe(
      '.SH "A \\fBB\\fR"\n.PP\none two\n.IP \\(bu 3\nx y\n.IP \\(bu 3\nz\n.PP\n.RS 4\n.nf\n\\&.a = 1\n\nb\n.fi\n.RE',
    );
    expect(markdownToRoff("| key | type | meaning |\n| --- | --- | --- |\n| `a` | text | what |\n")).toBe(
      ".TP\n\\fBa\\fR\n(text) what",
    );
  });

  test("versions sort as they should, and the changelog's items are found", () => {
    expect(["0.2.0", "0.2.0-rc.1", "1.0.0-a-b"].map(packageVersion)).toEqual(["0.2.0", "0.2.0~rc.1", "1.0.0~a.b"]);
    const changelog =
      "# C\n\n## [Unreleased]\n\n### Added\n\n* **A** `b`\n  [c](d)\n* e\n\n## [0.1.0] - 2026-01-31\n\n* f\n";
    expect(changesOf(changelog, "0.1.0")).toEqual(["f"]);
    expect(changesOf(changelog, "0.2.0")).toEqual(["A b c", "e"]);
    expect(changesOf("", "0.2.0")).toEqual(["Version 0.2.0."]);
  });
});

describe.skipIf(missing.length > 0)("packages", () => {
  let deb = "";
  let rpm = "";

  beforeAll(async () => {
    const built = await buildPackages(STAND_IN, directory.file("first"));
    expect(built).toMatchObject({ status: 0 });
    [deb = "", rpm = ""] = [
      built.files.find((path) => path.endsWith(".deb")),
      built.files.find((path) => path.endsWith(".rpm")),
    ];
  }, 60_000);

  test("made twice, elsewhere and by somebody else, they are the same bytes", async () => {
    mkdirSync(directory.file("home"));
    const copy = directory.file("another");
    copyFileSync(STAND_IN, copy);
    chmodSync(copy, 0o700);
    const env = {
      HOME: directory.file("home"),
      USER: "somebody",
      TZ: "Asia/Tokyo",
      LANG: "C",
      TMPDIR: directory.file("home"),
    };
    const again = await buildPackages(copy, directory.file("second"), { env });
    expect(again.files.map((path) => basename(path))).toEqual([deb, rpm].map((path) => basename(path)).toSorted());
    for (const path of again.files) {
      const first = readFileSync(path.replace("/second/", "/first/"));
      expect({ path: basename(path), same: readFileSync(path).equals(first) }).toEqual({
        path: basename(path),
        same: true,
      });
    }
  }, 60_000);

  test("all in them is root's, in both the same, and no path of this machine is in them", async () => {
    const inDeb = (await runProgram(["dpkg-deb", "--contents", deb])).trim().split("\n");
    expect(inDeb.every((line) => /^\S+ root\/root /.test(line))).toBe(true);
    const pathsOfDeb = inDeb.filter((line) => line.startsWith("-")).map((line) => line.split(" ./").at(-1));
    const inRpm = (
      await runProgram(["rpm", "-qp", "--queryformat", "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILENAMES}\\n]", rpm])
    )
      .trim()
      .split("\n");
    expect(inRpm.every((line) => line.split(" ")[1] === "root")).toBe(true);
    const pathsOfRpm = inRpm.filter((line) => line.startsWith("-")).map((line) => line.split(" /").at(-1));
    const own = /\/(?:zsh|licenses|lintian)\/|changelog\.gz$|copyright$/;
    const shared = (paths: readonly (string | undefined)[]) => paths.filter((path) => !own.test(path ?? "")).toSorted();
    expect(shared(pathsOfRpm)).toEqual(shared(pathsOfDeb));
    expect(pathsOfRpm.length).toBeGreaterThan(30);
    const config = (await runProgram(["rpm", "-qp", "--configfiles", rpm])).trim().split("\n");
    expect(config.toSorted()).toEqual(files.filter(({ isConfig }) => isConfig).map(({ path }) => path));
    for (const path of [deb, rpm]) expect(readFileSync(path).includes(ROOT)).toBe(false);
  });

  test.skipIf(findProgram("lintian") === null)(
    "lintian has nothing to say that is not explained",
    async () => {
      const said = await runProgram(["lintian", "--allow-root", "--no-cfg", "--fail-on=error,warning", deb]);
      expect(said).toBe("");
    },
    60_000,
  );

  test.skipIf(findProgram("rpmlint") === null)(
    "rpmlint neither",
    async () => {
      const said = await runProgram(["rpmlint", "--config", resolve(ROOT, "packaging/rpm/rpmlint.toml"), rpm], {
        statuses: [0, 64],
      });
      expect(said).toContain("0 errors, 0 warnings");
    },
    60_000,
  );

  test("what cannot be packed is refused with a sentence, and leaves nothing", async () => {
    const out = directory.file("refused");
    for (const [executable, more, says] of [
      [resolve(ROOT, "package.json"), [], "no packages: "],
      ["/nowhere", [], "give a target and a file"],
      [STAND_IN, ["--kinds=dmg"], "there are deb and rpm"],
    ] as const) {
      const { status, said, files: made } = await buildPackages(executable, out, { more });
      expect({ status, made }).toEqual({ status: 1, made: [] });
      expect(said).toContain(says);
    }
  }, 60_000);
});

test.skipIf(findProgram("shellcheck") === null)("the scripts that packages run are plain sh", async () => {
  const scripts = ["packaging/deb/postinst", "packaging/deb/prerm", "packaging/deb/postrm", "systemd/notify-failure"];
  expect(await runProgram(["shellcheck", "--shell=sh", ...scripts.map((path) => resolve(ROOT, path))])).toBe("");
});
