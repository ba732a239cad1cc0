import { expect, test } from "bun:test";
import { statSync } from "node:fs";
import { acquireInstanceLock } from "../../src/state/instance-lock.ts";
import { parseLockTable, readLockTable, splitDevice } from "../../src/state/lock-table.ts";
import { fc } from "../support/properties.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

test("held POSIX locks are parsed; waiters, flock, leases and strange lines are left out", () => {
  const table = [
    "1: POSIX  ADVISORY  WRITE 7485 fe:00:9977966 1073741824 1073742335",
    "2: POSIX  ADVISORY  READ  12 08:1f:18446744073709551615 0 EOF",
    "2: -> POSIX  ADVISORY  WRITE 99 08:1f:5 0 EOF",
    "3: FLOCK  ADVISORY  WRITE 2099 00:19:1234 0 EOF",
    "4: LEASE  ACTIVE    READ  5 00:19:1235 0 EOF",
    "5: OFDLCK ADVISORY  READ  -1 00:06:1 0 EOF",
    "6: POSIX  MANDATORY WRITE 8 103:02:77 10 19",
    "nonsense",
    "",
  ].join("\n");
  expect(parseLockTable(table)).toEqual([
    {
      mode: "WRITE",
      pid: 7485,
      deviceMajor: 0xfe,
      deviceMinor: 0,
      inode: 9977966n,
      firstByte: 1073741824,
      lastByte: 1073742335,
    },
    {
      mode: "READ",
      pid: 12,
      deviceMajor: 8,
      deviceMinor: 0x1f,
      inode: 18446744073709551615n,
      firstByte: 0,
      lastByte: Infinity,
    },
    { mode: "WRITE", pid: 8, deviceMajor: 0x103, deviceMinor: 2, inode: 77n, firstByte: 10, lastByte: 19 },
  ]);
});

test("any text is parsed without a throw", () => {
  fc.assert(fc.property(fc.string(), (text) => Array.isArray(parseLockTable(text))));
});

test("device numbers are split as the kernel shows them", () => {
  expect(splitDevice(65_024n)).toEqual({ major: 254, minor: 0 });
  expect(splitDevice(0x1f_fff0_0345n)).toEqual({ major: 0x3, minor: 0x1ff_ff45 });
  expect(splitDevice(0x0000_1000_0000_0801n)).toEqual({ major: 0x1008, minor: 1 });
});

test.skipIf(process.platform !== "linux")(
  "a lock of ours stands in the table under the numbers of its file",
  async () => {
    await using directory = await temporaryDirectory("lock");
    await using lock = await acquireInstanceLock(directory.file("app.db"));
    const { dev, ino } = statSync(lock.lockPath, { bigint: true });
    const { major, minor } = splitDevice(dev);
    expect(await readLockTable()).toContainEqual({
      mode: "WRITE",
      pid: process.pid,
      deviceMajor: major,
      deviceMinor: minor,
      inode: ino,
      firstByte: 0x4000_0000,
      lastByte: 0x4000_0000 + 511,
    });
  },
);
