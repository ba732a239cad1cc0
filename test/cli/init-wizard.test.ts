import { Database } from "bun:sqlite";
import { afterEach, beforeEach, expect, test } from "bun:test";
import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { TerminalSession } from "../support/terminal.ts";
import { run } from "./wrong-runs.ts";

const ENTER = "\r";
const DOWN = "\u001b[B";
const CTRL_C = "\u0003";
/** Takes away what is proposed. */
const CLEAR = "\u0015";

let directory: TemporaryDirectory;
const file = (...names: readonly string[]) => directory.file(...names);

beforeEach(async () => {
  directory = await temporaryDirectory("wizard");
  chmodSync(directory.path, 0o755);
  mkdirSync(file("app"));
  using db = new Database(file("app", "shop.db"), { create: true });
  db.run("CREATE TABLE t (x)");
  mkdirSync(file("units"));
  writeFileSync(file("units", "bakelite.service"), "[Service]\nExecStart=/usr/bin/bakelite daemon\n");
});

afterEach(() => directory[Symbol.asyncDispose]());

function wizard(argv: readonly string[] = []): TerminalSession {
  return new TerminalSession(["init", "--config", file("etc", "bakelite.toml"), ...argv], {
    SYSTEMD_UNIT_PATH: file("units"),
    TMPDIR: file("app"),
  });
}

/** A question, and the keys that answer it. */
type Turn = readonly [question: string, keys: string];

const changes = (): readonly Turn[] => [
  [`Make the directory ${file("etc")}?`, ENTER],
  ["Make a new key:", ENTER],
  [`Make the directory ${file("backups")}?`, ENTER],
  ["Write ", ENTER],
  ["into WAL mode, which", ENTER],
  ["bakelite.service.d?", ENTER],
  ["10-init.conf (mode 0644)?", ENTER],
  ["bakelite-.service.d?", ENTER],
  ["10-init.conf (mode 0644)?", ENTER],
];

const conversation = (): readonly Turn[] => [
  ["Where should the backups go?", ENTER],
  ["Under which name should it be stored?", ENTER],
  ["Which directory should hold the backups?", `${CLEAR}${file("backups")}${ENTER}`],
  ["Encrypt everything", ENTER],
  ["Set up the systemd service?", ENTER],
  ["As which user should it run?", ENTER],
  ["Start it now", ENTER],
  ["Key file?", ENTER],
  ["Put it into WAL mode?", ENTER],
  ...changes(),
];

async function answer(session: TerminalSession, turns: readonly Turn[]): Promise<void> {
  for (const [question, keys] of turns) {
    await session.untilShown(question);
    session.type(keys);
  }
}

/** Every file and directory below the test's, with mode and content. */
function snapshot(): readonly string[] {
  const entries = readdirSync(directory.path, { recursive: true, withFileTypes: true });
  return entries.map((entry) => {
    const path = `${entry.parentPath}/${entry.name}`;
    return `${path} ${statSync(path).mode} ${entry.isFile() ? readFileSync(path, "latin1") : ""}`;
  });
}

test("it leads to a configuration that doctor and the daemon's user can live with", async () => {
  await using session = wizard(["--db-path", file("app", "shop.db")]);
  await answer(session, conversation());
  expect({ code: await session.exited, shown: session.shown.slice(-2000) }).toMatchObject({ code: 0 });
  expect(session.shown).toContain("passed");
  expect(session.shown).toContain("Keep a copy of");
  const doctor = await run(["doctor", "--json", "--config", file("etc", "bakelite.toml")], {
    env: { SYSTEMD_UNIT_PATH: file("units") },
  });
  expect(JSON.parse(doctor.stdout)).toMatchObject({ fail_count: 0, databases: [{ name: "shop" }] });
});

test("Ctrl-C at any question ends it with 130 and leaves everything as it was", async () => {
  const before = snapshot();
  const turns = conversation();
  for (let batch = 0; batch < turns.length; batch += 6)
    await Promise.all(
      turns.slice(batch, batch + 6).map(async ([question], i) => {
        await using session = wizard(["--db-path", file("app", "shop.db")]);
        await answer(session, turns.slice(0, batch + i));
        await session.untilShown(question);
        session.type(CTRL_C);
        expect({ question, code: await session.exited }).toEqual({ question, code: 130 });
        expect(session.shown).toContain("nothing was changed");
      }),
    );
  expect(snapshot()).toEqual(before);
}, 120_000);

test("a no to any change makes none of them", async () => {
  const before = snapshot();
  await using session = wizard(["--db-path", file("app", "shop.db")]);
  const turns = conversation();
  await answer(session, [...turns.slice(0, -1), [turns.at(-1)?.[0] ?? "", `${DOWN}${ENTER}`]]);
  expect(await session.exited).toBe(1);
  expect(session.shown).toContain("Nothing was changed.");
  expect(snapshot()).toEqual(before);
});

test("a destination that does not answer is told with what to do, and the secret is nowhere to be seen", async () => {
  const before = snapshot();
  await using session = wizard(["--db-path", file("app", "shop.db"), "--recipe", "s3"]);
  await answer(session, [
    ["Under which name", ENTER],
    ["Which bucket?", `my-bucket${ENTER}`],
    ["Below which prefix", ENTER],
    ["Which endpoint?", `http://127.0.0.1:9${ENTER}`],
    ["Which region?", ENTER],
    ["Access key id?", `AKIDEXAMPLE${ENTER}`],
    ["Secret access key?", `hush-hush-secret${ENTER}`],
    ["What now?", `${DOWN}${DOWN}${ENTER}`],
  ]);
  expect(await session.exited).toBe(130);
  expect(session.shown).toContain("s3://my-bucket/bakelite: FAIL");
  expect(session.transcript).not.toContain("hush-hush-secret");
  expect(snapshot()).toEqual(before);
});

test("a signal in the middle of a question ends it as a signal does", async () => {
  const before = snapshot();
  await using session = wizard(["--db-path", file("app", "shop.db")]);
  await session.untilShown("Where should the backups go?");
  session.kill("SIGTERM");
  expect(await session.exited).toBe(143);
  expect(snapshot()).toEqual(before);
});
