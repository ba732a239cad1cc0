import { expect, test } from "bun:test";
import { startDaemon } from "../oracle/daemon-process.ts";
import { pythonPath } from "../support/python.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const strace = Bun.which("strace");
if (strace === null) console.log("note: a slow disk was not tried: there is no strace");

/** Commits once and then stays, without closing the database, until its input ends. */
const COMMIT_ONCE = `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA synchronous = FULL")
sys.stdin.readline()
db.execute("INSERT INTO t VALUES (randomblob(2000))")
print("committed", flush=True)
sys.stdin.readline()
`;

// SQLite writes the frames, which is the only file event, then syncs, and only then makes the commit known.
test.skipIf(strace === null)(
  "a commit whose sync takes long is stored soon after it, not at the next safety poll",
  async () => {
    await using directory = await temporaryDirectory("slow-disk");
    const path = directory.file("app.db");
    Bun.spawnSync([
      pythonPath(),
      "-c",
      "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA journal_mode=WAL'); db.execute('CREATE TABLE t (x)')",
      path,
    ]);
    await using daemon = await startDaemon({
      program: "executable",
      configPath: directory.file("bakelite.toml"),
      databases: [{ name: "app", path, replicas: [directory.file("replica")], settings: { safety_poll: "1h" } }],
    });
    const before = await daemon.untilStatus(({ state, full_backup }) => state === "live" && full_backup !== null, {
      what: "the first full backup",
    });
    const writer = Bun.spawn(
      [
        ...[strace ?? "strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=fsync,fdatasync:delay_enter=400000"],
        ...[pythonPath(), "-c", COMMIT_ONCE, path],
      ],
      { stdin: "pipe", stdout: "pipe", stderr: "inherit" },
    );
    try {
      writer.stdin.write("go\n");
      await writer.stdin.flush();
      const { value } = await writer.stdout.getReader().read();
      expect(new TextDecoder().decode(value)).toStartWith("committed");
      await daemon.untilStatus(({ index }) => (index ?? 0) > (before.index ?? 0), {
        what: "the commit in the replica",
      });
    } finally {
      // It ends by itself then; strace would not pass a signal on.
      await writer.stdin.end();
      await writer.exited;
    }
  },
  60_000,
);
