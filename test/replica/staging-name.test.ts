import { expect, test } from "bun:test";
import {
  createStagingSuffix,
  isStagingAbandoned,
  parseStagingSuffix,
  type StagingOwner,
} from "../../src/replica/staging-name.ts";

const MINUTE_MS = 60_000;
const LONG_MS = 1_000 * MINUTE_MS;

async function ownMark(): Promise<StagingOwner> {
  const owner = parseStagingSuffix(await createStagingSuffix());
  if (owner === null) throw new Error("our own name cannot be read");
  return owner;
}

test("no two names are the same, and each can be read again", async () => {
  const names = await Promise.all(Array.from({ length: 50 }, createStagingSuffix));
  expect(new Set(names).size).toBe(50);
  expect(await ownMark()).toMatchObject({ pid: process.pid });
});

test.each([
  "",
  "notes",
  "0123456789abcdef",
  "0-1-00000000-00000000-00000000-00000000",
  "12-1-00000000-00000000-00000000",
])("%p is not the name of a staging file", (suffix) => {
  expect(parseStagingSuffix(suffix)).toBeNull();
});

test("a process that lives keeps its file, however long it is silent", async () => {
  expect(await isStagingAbandoned(await ownMark(), LONG_MS)).toBe(false);
});

test("a process that had our PID before us, or ended, or ran before the last boot is gone at once", async () => {
  const own = await ownMark();
  expect(await isStagingAbandoned({ ...own, startTicks: "1" }, 0)).toBe(true);
  const child = Bun.spawn(["true"]);
  await child.exited;
  expect(await isStagingAbandoned({ ...own, pid: child.pid }, 0)).toBe(true);
  expect(await isStagingAbandoned({ ...own, boot: "ffffffff" }, 0)).toBe(true);
});

test.each(["machine", "namespace"] as const)(
  "of another %s nobody can tell, so that ten minutes without a sign of life must have passed",
  async (field) => {
    const other = { ...(await ownMark()), startTicks: "1", [field]: "ffffffff" };
    expect(await isStagingAbandoned(other, 9 * MINUTE_MS)).toBe(false);
    expect(await isStagingAbandoned(other, 11 * MINUTE_MS)).toBe(true);
  },
);
