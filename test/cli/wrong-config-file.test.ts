import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, chownSync, existsSync, mkdirSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { registry } from "../../src/cli/registry.ts";
import { DEFAULT_CONFIG_PATH } from "../../src/config/source.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { expectRefused, plainConfig, run, unprivilegedLauncher } from "./wrong-runs.ts";

/** They read no configuration. */
const WITHOUT_CONFIG: ReadonlySet<string> = new Set(["version", "help", "keygen", "init"]);
/** What is right about the command line, so that only the file is wrong. */
const COMPANIONS: Readonly<Record<string, readonly string[]>> = { restore: ["--db", "app", "--output", "/nowhere/x"] };
const readers = registry.map(({ name }) => name).filter((name) => !WITHOUT_CONFIG.has(name));

let directory: TemporaryDirectory;

beforeAll(async () => {
  directory = await temporaryDirectory("wrong-config");
});

afterAll(() => directory[Symbol.asyncDispose]());

/** Every command that reads the configuration refuses this file with exit code 2 and a sentence that `says` this. */
async function refusedByAll(path: string, says: string, launcher: readonly string[] = []): Promise<void> {
  await Promise.all(
    readers.map(async (name) => {
      const outcome = await run([name, "--config", path, ...(COMPANIONS[name] ?? [])], { launcher });
      expectRefused(outcome, { code: 2, says });
    }),
  );
}

function file(name: string, content: string | Uint8Array): string {
  writeFileSync(directory.file(name), content);
  return directory.file(name);
}

describe("no command goes on with", () => {
  test("a file that is not there, a folder that is not there, and a file in place of a folder", async () => {
    const missing = directory.file("gone.toml");
    await refusedByAll(missing, `bakelite: there is no configuration file named by --config (${missing})\n  hint: `);
    await refusedByAll(directory.file("gone", "x.toml"), "there is no configuration file named by --config");
    await refusedByAll(`${file("plain", "x")}/x.toml`, "there is no configuration file named by --config");
    symlinkSync(missing, directory.file("dangling.toml"));
    await refusedByAll(directory.file("dangling.toml"), "there is no configuration file named by --config");
  });

  test("a directory", async () => {
    const path = directory.file("folder");
    mkdirSync(path);
    await refusedByAll(
      path,
      `bakelite: the configuration named by --config is a directory (${path})\n  hint: name the file in it, such as --config ${path}/bakelite.toml\n`,
    );
  });

  test("a pipe that nobody writes to, and a device that never ends: none is waited for", async () => {
    const pipe = directory.file("pipe");
    expect(Bun.spawnSync(["mkfifo", pipe]).exitCode).toBe(0);
    for (const path of [pipe, "/dev/zero", "/dev/null", "/dev/tty"].filter(existsSync)) {
      const startedMs = performance.now();
      const outcome = await run(["status", "-c", path]);
      expectRefused(outcome, { code: 2, says: path });
      expect(performance.now() - startedMs).toBeLessThan(5_000);
    }
    await refusedByAll(pipe, `bakelite: the configuration named by --config is not a regular file (${pipe})\n  hint: `);
  });

  test("a file of 100 MB: it is refused without being read", async () => {
    const path = file("huge.toml", "a");
    truncateSync(path, 100_000_000);
    const startedMs = performance.now();
    await refusedByAll(
      path,
      `bakelite: the configuration file is too large: 95.4 MiB, and at most 16.0 MiB (${path})\n`,
    );
    expect(performance.now() - startedMs).toBeLessThan(20_000);
  });

  test("an empty file, one with comments only, and one without a database", async () => {
    for (const [name, text] of Object.entries({
      empty: "",
      blank: " \n\n",
      comment: "# nothing yet\n",
      bom: "\uFEFF",
    })) {
      const path = file(`${name}.toml`, text);
      const says = `bakelite: invalid configuration: ${path}:1:1: nothing is in it; it needs at least one [[database]], which \`bakelite init\` writes\n`;
      await refusedByAll(path, says);
    }
    const path = file("none.toml", "[daemon]\nlog_level = 'info'\n");
    await refusedByAll(path, `${path}:1:1: the file needs \`database\`, which must be given as [[database]]\n`);
  });

  test("binary garbage, text that is not UTF-8, and a NUL byte, each named with its line", async () => {
    const garbage = file(
      "garbage.toml",
      new Uint8Array(4_096).map((_, i) => (i * 7_919 + (i >> 3)) & 0xff),
    );
    await refusedByAll(garbage, "bakelite: the configuration file is not UTF-8 text (");
    const good = new TextEncoder().encode(plainConfig(directory.path));
    const latin1 = file("latin1.toml", Buffer.concat([good, Buffer.from("# caf\u00e9\n", "latin1"), good]));
    const line = plainConfig(directory.path).split("\n").length;
    await refusedByAll(latin1, `bakelite: the configuration file is not UTF-8 text (${latin1}:${line})\n  hint: `);
    const nul = file("nul.toml", `${plainConfig(directory.path)}# a\0b\n`);
    await refusedByAll(nul, `bakelite: invalid configuration: ${nul}:${line}:`);
    const utf16 = file("utf16.toml", Buffer.from(`\uFEFF${plainConfig(directory.path)}`, "utf16le"));
    await refusedByAll(utf16, `bakelite: the configuration file is not UTF-8 text (${utf16}:1)\n`);
    await refusedByAll("/proc/self/exe", "bakelite: the configuration file is too large: ");
  });

  test("text that is not TOML, with the line", async () => {
    for (const [text, at] of [
      ["[[database]]\nname = app\n", "2:8"],
      ["[[database]\n", "1:"],
      ['[[database]]\nname = "app\n', "2:"],
      ["name: app\n", "1:"],
      ['{"database": []}\n', "1:"],
      ["[[database]]\nname = 'a'\nname = 'b'\n", "3:1"],
    ] as const) {
      const path = file("toml.toml", text);
      expectRefused(await run(["list", "-c", path]), {
        code: 2,
        says: `bakelite: invalid configuration: ${path}:${at}`,
      });
    }
  });

  const launcher = unprivilegedLauncher();
  test.skipIf(launcher === undefined)(
    "a file that it may not read, and one in a folder that it may not enter",
    async () => {
      const path = file("private.toml", plainConfig(directory.path));
      const closed = directory.file("closed");
      mkdirSync(closed);
      writeFileSync(`${closed}/x.toml`, plainConfig(directory.path));
      for (const each of [path, closed]) {
        chmodSync(each, launcher?.length === 0 ? 0 : 0o700);
        if (launcher?.length !== 0) chownSync(each, 65_534, 65_534);
      }
      const says = "bakelite: no permission to read the configuration file named by --config";
      await refusedByAll(path, `${says} (${path})\n  hint: run as the user that owns it, or with sudo`, launcher);
      await refusedByAll(`${closed}/x.toml`, `${says} (${closed}/x.toml)\n`, launcher);
      chmodSync(closed, 0o755);
    },
  );
});

test("a file whose name would move the cursor is told without doing so", async () => {
  const name = "\u001b[2J\n  hint: evil\u202e\u009b.toml";
  const says = "/\\u001b[2J\\n  hint: evil\\u202e\\u009b.toml";
  await refusedByAll(directory.file(name), says);
  await refusedByAll(file(name, "x = 1\ny = 2\n"), `${says}:1:1: unknown key \`x\` at the top level`);
  const keys = file("keys.toml", `"a\\nb\\u001b[2J" = 1\n[[database]]\nname = "app\\u001b[2J"\n`);
  expectRefused(await run(["list", "-c", keys]), { code: 2, says: "unknown key `a\\nb\\u001b[2J` at the top level" });
});

test("a byte order mark, Windows line ends and a link do no harm", async () => {
  const text = plainConfig(directory.path);
  const plain = await run(["config", "--json", "-c", file("good.toml", text)]);
  expect(plain).toMatchObject({ code: 0, stderr: "" });
  symlinkSync(directory.file("good.toml"), directory.file("link.toml"));
  const others = [
    file("marked.toml", `\uFEFF${text}`),
    file("windows.toml", text.replaceAll("\n", "\r\n")),
    directory.file("link.toml"),
  ];
  for (const path of others) {
    const { code, stdout, stderr } = await run(["config", "--json", "-c", path]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect({ ...JSON.parse(stdout), path: "" }).toEqual({ ...JSON.parse(plain.stdout), path: "" });
  }
});

describe("$BAKELITE_CONFIG", () => {
  test("names the file unless --config does, and is said to have done so", async () => {
    const path = file("env.toml", plainConfig(directory.path));
    const named = await run(["config"], { env: { BAKELITE_CONFIG: path } });
    expect(named.stdout).toMatch(/^\S+ \(named by \$BAKELITE_CONFIG\)\n/);
    const relative = await run(["config"], { env: { BAKELITE_CONFIG: "env.toml" }, cwd: directory.path });
    expect(relative.stdout).toBe(named.stdout);
    const wrong = { BAKELITE_CONFIG: "/nowhere/at-all.toml" };
    expect((await run(["config", "-c", path], { env: wrong })).code).toBe(0);
    for (const name of readers)
      expectRefused(await run([name, ...(COMPANIONS[name] ?? [])], { env: wrong }), {
        code: 2,
        says: "bakelite: there is no configuration file named by $BAKELITE_CONFIG (/nowhere/at-all.toml)\n  hint: correct $BAKELITE_CONFIG; ",
      });
  });

  test.skipIf(existsSync(DEFAULT_CONFIG_PATH))(
    "is as good as unset when empty: the default place is named, and what to do",
    async () => {
      for (const env of [{}, { BAKELITE_CONFIG: "" }])
        await Promise.all(
          readers.map(async (name) =>
            expectRefused(await run([name, ...(COMPANIONS[name] ?? [])], { env }), {
              code: 2,
              says: `bakelite: there is no configuration file at the default place (${DEFAULT_CONFIG_PATH})\n  hint: give --config <path>, set $BAKELITE_CONFIG, or `,
            }),
          ),
        );
    },
  );
});

test("help and versions need no configuration, and do not look at one that is broken", async () => {
  const env = { BAKELITE_CONFIG: file("broken.toml", "[") };
  for (const argv of [["version"], ["help"], ["--help"], ["--version"], ...readers.map((name) => [name, "--help"])])
    expect(await run(argv, { env })).toMatchObject({ code: 0, stderr: "" });
});
