import { describe, expect, test } from "bun:test";
import { modeGrants } from "../../src/setup/doctor-access.ts";
import { judgeRoom, judgeWal } from "../../src/setup/doctor-database.ts";
import { judgeDestinationRoom } from "../../src/setup/doctor-destination.ts";
import { shellWord } from "../../src/setup/doctor-files.ts";
import { judgeOpenFiles, listeningSockets, parseOpenFilesLimit } from "../../src/setup/doctor-host.ts";
import { mountOf, parseMounts, unfitForWal } from "../../src/setup/doctor-mounts.ts";
import { type DoctorReport, fail, pass, warn } from "../../src/setup/doctor-report.ts";
import { judgeOtherReplicators } from "../../src/setup/doctor-state.ts";
import { doctorText } from "../../src/setup/doctor-text.ts";
import { People, parseAccounts, parseGroups } from "../../src/setup/doctor-users.ts";

const MIB = 2 ** 20;

test.each([
  // The first class that applies decides, also where a later one would grant more.
  [0o604, 1, 9, 4, true],
  [0o600, 2, 9, 4, false],
  [0o660, 2, 1, 6, true],
  [0o606, 2, 1, 4, false],
  [0o606, 2, 9, 6, true],
  [0o400, 1, 9, 2, false],
  [0o711, 2, 9, 1, true],
  [0o711, 2, 9, 5, false],
])("mode %o, user %d of group %d, asked for %d: %p", (mode, uid, gid, wanted, granted) => {
  const user = { uid, gids: new Set([gid]), overridesModes: false };
  expect(modeGrants({ mode, uid: 1, gid: 1 }, user, wanted)).toBe(granted);
  expect(modeGrants({ mode, uid: 1, gid: 1 }, { ...user, overridesModes: true }, wanted)).toBe(true);
});

test("users and groups are found by name and number, and lines that are none are passed over", () => {
  const people = new People(
    parseAccounts("root:x:0:0::/root:/bin/sh\napp:x:1000:1001:An app:/:/bin/false\ngarbage\n:x:1:1\nx:x:no:0\n"),
    parseGroups("root:x:0:\napp:x:1001:\nbackup:x:34:app,other\ngarbage\n"),
  );
  expect(people.account("app")).toEqual({ name: "app", uid: 1000, gid: 1001 });
  expect(people.account("1000")?.name).toBe("app");
  expect(people.account("x")).toBeNull();
  expect(people.group("34")?.name).toBe("backup");
  expect(people.groupsOf("app").map(({ name }) => name)).toEqual(["backup"]);
  expect([people.userName(7), people.groupName(34)]).toEqual(["7", "backup"]);
});

describe("mounts", () => {
  const mounts = parseMounts(
    [
      "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
      "23 22 0:40 / /mnt/my\\040disk ro,relatime - nfs4 host:/x rw",
      "24 22 0:41 / /mnt/a rw - fuse.sshfs me@host rw,user_id=0",
      "25 22 0:42 / /mnt/a rw - tmpfs none ro",
      "garbage",
      "26 22 0:43 / /mnt/cut rw",
    ].join("\n"),
  );

  test("the longest mount point that leads to a path counts, and of equal ones the last", () => {
    expect(mounts).toHaveLength(4);
    expect(mountOf(mounts, "/mnt/my disk/x")).toMatchObject({ type: "nfs4", readOnly: true });
    expect(mountOf(mounts, "/mnt/a/b")).toMatchObject({ type: "tmpfs", readOnly: true });
    expect(mountOf(mounts, "/mnt/ab")).toMatchObject({ type: "ext4", readOnly: false });
    expect(mountOf([], "/")).toBeNull();
  });

  test.each(["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse", "overlay", "tmpfs", "virtiofs"])(
    "%s is no place for a database in WAL mode",
    (type) => expect(unfitForWal(type)).not.toBeNull(),
  );

  test.each(["ext4", "xfs", "btrfs", "zfs", "apfs", "fuseblk", "f2fs"])("%s is", (type) =>
    expect(unfitForWal(type)).toBeNull(),
  );
});

test.each([
  [{ freeBytes: 10 * MIB }, "fail"],
  [{ freeBytes: 40 * MIB }, "warn"],
  [{ freeBytes: 200 * MIB }, "pass"],
  [{ freeBytes: 200 * MIB, freeFiles: 0 }, "fail"],
  [{ freeBytes: 200 * MIB, freeFiles: 5 }, "pass"],
])("a database of 100 MiB with %j free: %s", (room, level) => {
  const all = { freeFiles: null, databaseBytes: 100 * MIB, maxWalSizeBytes: 16 * MIB, ...room };
  expect(judgeRoom(all).level).toBe(level as never);
});

test.each([
  [{ freeBytes: 1000 }, "fail"],
  [{ freeBytes: 50 * MIB }, "warn"],
  [{ freeBytes: 100 * MIB }, "pass"],
  [{ freeBytes: 100 * MIB, freeFiles: 0 }, "fail"],
])("a destination for 100 MiB with %j free: %s", (room, level) => {
  expect(judgeDestinationRoom({ freeFiles: null, databaseBytes: 100 * MIB, ...room }).level).toBe(level as never);
});

test("open files: nine for each database and some for the daemon", () => {
  expect(judgeOpenFiles(1, 1024).level).toBe("pass");
  expect(judgeOpenFiles(200, 1024)).toMatchObject({ level: "fail", fix: expect.stringContaining("LimitNOFILE=4096") });
  expect(judgeOpenFiles(200, Number.POSITIVE_INFINITY).level).toBe("pass");
  expect(judgeOpenFiles(200, null).level).toBe("pass");
  expect(parseOpenFilesLimit("Max open files            1024                 524288               files")).toBe(
    524_288,
  );
  expect(parseOpenFilesLimit("Max open files  1024  unlimited  files")).toBe(Number.POSITIVE_INFINITY);
  expect(parseOpenFilesLimit("garbage")).toBeNull();
});

test("listening sockets are told by port and state", () => {
  const table = [
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
    "   0: 0100007F:2382 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100",
    "   1: 0100007F:2382 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 12346 1 0 100",
    "   2: 0100007F:2383 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12347 1 0 100",
    "garbage",
  ].join("\n");
  expect(listeningSockets(table, 0x2382)).toEqual(["12345"]);
});

test("a large WAL is worth a warning, whoever follows it", () => {
  const look = (size: number) =>
    ({
      path: "/a.db",
      header: { kind: "sqlite", header: { pageSizeBytes: 4096, isWal: true, sizePages: 1 } },
      wal: { size, isFile: () => true },
    }) as unknown as Parameters<typeof judgeWal>[0];
  const config = { maxWalSizeBytes: 16 * MIB } as Parameters<typeof judgeWal>[1];
  expect(judgeWal(look(64 * MIB), config, { isFollowed: false })[0]?.level).toBe("pass");
  expect(judgeWal(look(65 * MIB), config, { isFollowed: false })[0]).toMatchObject({
    level: "warn",
    message: expect.stringContaining("wal_autocheckpoint = 0"),
  });
  expect(judgeWal(look(65 * MIB), config, { isFollowed: true })[0]?.message).not.toContain("wal_autocheckpoint");
});

test("other replicators: what has the database open fails, what left traces warns", () => {
  const none = { litestreamDirectory: null, hasLitestreamTables: false, users: [], suspects: [] };
  const process = { pid: 7, program: "litestream" };
  expect(judgeOtherReplicators(none)).toMatchObject([{ level: "pass" }]);
  expect(judgeOtherReplicators({ ...none, users: [process] })).toMatchObject([{ level: "fail" }]);
  expect(judgeOtherReplicators({ ...none, suspects: [process] })).toMatchObject([{ level: "warn" }]);
  expect(judgeOtherReplicators({ ...none, hasLitestreamTables: true })).toMatchObject([{ level: "warn" }]);
});

test.each([
  ["/var/lib/app.db", "/var/lib/app.db"],
  ["/a b", "'/a b'"],
  ["/it's", "'/it'\\''s'"],
  ["/$(rm)", "'/$(rm)'"],
])("%s is the shell's word %s", (text, word) => expect(shellWord(text)).toBe(word));

describe("the text", () => {
  const report: DoctorReport = {
    user: "app",
    service: "/etc/systemd/system/bakelite.service",
    host: [pass("configuration", "valid")],
    databases: [
      {
        name: "app",
        path: "/a\u001b[2J.db",
        checks: [warn("disk space", "little", "free some")],
        destinations: [{ location: "s3://b", type: "s3", async: true, checks: [fail("reachable", "no", "do")] }],
      },
    ],
  };

  test("is grouped and aligned, shows the fix below, and counts at the end", () => {
    expect(doctorText(report, { colour: false })).toBe(
      [
        "host, for the user app of /etc/systemd/system/bakelite.service",
        "  pass  configuration  valid",
        "",
        "app  /a\\u001b[2J.db",
        "  warn  disk space     little",
        "                       fix: free some",
        "  s3://b (background mirror)",
        "    FAIL  reachable      no",
        "                         fix: do",
        "",
        "1 failure, 1 warning, 1 passed",
        "",
      ].join("\n"),
    );
  });

  test("has colour only where it may", () => {
    expect(doctorText(report, { colour: true })).toContain("\u001b[31mFAIL\u001b[0m");
  });
});
