import { expect, test } from "bun:test";
import { chownSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { type MirrorStatus, readMirrorStatus, writeMirrorStatus } from "../../src/state/mirror-status.ts";
import { observeLagSeconds, observeState, readStatus, type StatusFile, writeStatus } from "../../src/state/status.ts";
import {
  nextVerifyMarker,
  readVerifyMarker,
  type VerifyRun,
  writeVerifyMarker,
} from "../../src/state/verify-marker.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const NOW = "2026-05-25T12:00:00.000Z";
const nowMs = Date.parse(NOW);
const at = (secondsAgo: number) => new Date(nowMs - secondsAgo * 1000).toISOString();
const failure = { at: NOW, message: "cannot store the object: no space left", code: "storage-full" };

const identity = { pid: 4711, pid_start_ticks: "123456", boot_id: "b", pid_namespace: "pid:[4026531836]" };

const status: StatusFile = {
  version: 1,
  bakelite_version: "0.1.0",
  database: "app",
  path: "/srv/app.db",
  process: identity,
  run: "a".repeat(32),
  started_at: NOW,
  written_at: NOW,
  publish_interval_ms: 2_000,
  state: "live",
  state_since: NOW,
  detail: null,
  progress: null,
  unhealthy: null,
  last_error: failure,
  index: 42,
  newest_restore_point: { index: 42, at: NOW },
  last_commit_at: NOW,
  last_synced_at: NOW,
  oldest_unstored_at: null,
  lag_seconds: 0,
  change_sets: 41,
  bytes_shipped: 123_456,
  full_backup: { index: 1, settled: 2, at: NOW },
  full_backup_in_progress: { index: 40, reason: "interval", since: NOW, progress: 0.5 },
  full_backups_by_reason: { "first start": 1 },
  wal: { size_bytes: 4_120_032, committed_frames: 1000, backfilled_frames: 10, held_by: { pid: 12, since: NOW } },
  longest_write_lock_ms: 3.25,
  limits_unmet: [{ destination: "/var/backups/app", limit: "max_total_size", allowed: 1000, remaining: 2000 }],
  destinations: [
    {
      location: "/var/backups/app",
      type: "file",
      async: false,
      state: "backing off",
      state_since: NOW,
      index: 40,
      behind_objects: 2,
      behind_bytes: 2000,
      last_stored_at: NOW,
      unhealthy: { since: NOW, attempts: 3, last_error: failure },
      last_error: failure,
    },
  ],
};

const mirror: MirrorStatus = {
  version: 1,
  database: "app",
  process: identity,
  written_at: NOW,
  reconcile_interval_ms: 60_000,
  mirrors: [
    {
      location: "/mnt/mirror",
      type: "file",
      state: "behind",
      state_since: NOW,
      index: 10,
      behind_objects: 3,
      behind_bytes: 999,
      last_reconciled_at: NOW,
      last_in_sync_at: null,
      attempts: 0,
      last_error: null,
    },
  ],
};

const run: VerifyRun = {
  started_at: at(60),
  finished_at: NOW,
  mode: "shallow",
  outcome: "clean",
  problem_count: 0,
  problems: [],
  warning_count: 0,
  objects_checked: 100,
  bytes_read: 1_000_000,
  newest_restore_point: { index: 42, at: NOW },
};

const marker = nextVerifyMarker(null, "app", run);

interface StateFile {
  readonly name: string;
  readonly value: object;
  readonly read: (path: string) => Promise<unknown>;
  readonly write: (path: string) => Promise<void>;
}

const FILES: readonly StateFile[] = [
  { name: "app.status.json", value: status, read: readStatus, write: (path: string) => writeStatus(path, status) },
  {
    name: "app.verify.json",
    value: marker,
    read: readVerifyMarker,
    write: (path: string) => writeVerifyMarker(path, marker),
  },
  {
    name: "app.mirror.json",
    value: mirror,
    read: readMirrorStatus,
    write: (path: string) => writeMirrorStatus(path, mirror),
  },
];

for (const { name, value, read, write } of FILES) {
  test(`${name} is read as it was written, is missing before, and is 0600 JSON`, async () => {
    await using directory = await temporaryDirectory("state");
    const path = directory.file(name);
    expect(await read(path)).toEqual({ outcome: "missing" });
    await write(path);
    expect(await read(path)).toEqual({ outcome: "read", value: structuredClone(value) });
    expect(JSON.parse(readFileSync(path, "utf8"))).toEqual(structuredClone(value));
    expect(statSync(path).mode & 0o7777).toBe(0o600);
  });

  test(`${name}: every shortened file, garbage, a newer version and a wrong field are corrupt, with the reason`, async () => {
    await using directory = await temporaryDirectory("state");
    const path = directory.file(name);
    await write(path);
    const bytes = readFileSync(path);
    for (let length = bytes.byteLength - 2; length >= 0; length -= 11) {
      writeFileSync(path, bytes.subarray(0, length));
      expect(await read(path)).toEqual({ outcome: "corrupt", reason: "it is not JSON" });
    }
    for (const json of ["null", "[]", "{}", "7", '"text"', '{"version":1}'])
      expect(await readAfter(path, json, read)).toMatchObject({ outcome: "corrupt", reason: expect.any(String) });
    expect(await readAfter(path, JSON.stringify({ ...value, version: 2 }), read)).toMatchObject({
      reason: expect.stringContaining("newer bakelite"),
    });
    expect(await readAfter(path, JSON.stringify({ ...value, database: 5 }), read)).toMatchObject({
      reason: expect.stringContaining("field database"),
    });
    expect(await readAfter(path, JSON.stringify({ ...value, added_later: 1 }), read)).toEqual({
      outcome: "read",
      value: structuredClone(value),
    });
  });

  test(`docs/state-files.md shows ${name} with every field`, async () => {
    const page = readFileSync(`${import.meta.dir}/../../docs/state-files.md`, "utf8");
    for (const field of fieldsOf(value)) expect(page).toContain(`\`${field}\``);
    const section = page.slice(page.search(new RegExp(`^## .*${name.replace("app", "").replaceAll(".", "\\.")}`, "m")));
    const example = /```json\n(.*?)```/s.exec(section)?.[1] ?? "";
    await using directory = await temporaryDirectory("state");
    const result = await readAfter(directory.file(name), example, read);
    expect(result).toEqual({ outcome: "read", value: JSON.parse(example) });
  });
}

test.skipIf(process.geteuid?.() !== 0)("run as root, a file gets its directory's owner", async () => {
  await using directory = await temporaryDirectory("state");
  mkdirSync(directory.file(".bakelite"));
  chownSync(directory.file(".bakelite"), 12_345, 23_456);
  await writeStatus(directory.file(".bakelite", "app.status.json"), status);
  const { uid, gid } = statSync(directory.file(".bakelite", "app.status.json"));
  expect([uid, gid]).toEqual([12_345, 23_456]);
});

test("what a status means depends on when and from where one looks", () => {
  const look = (changes: Partial<StatusFile>, secondsLater: number, isRunning: boolean | null) =>
    observeState({ ...status, ...changes }, { nowMs: nowMs + secondsLater * 1000, isRunning });
  expect(look({}, 1, true)).toBe("live");
  expect(look({}, 6, true)).toBe("live");
  expect(look({}, 6.001, true)).toBe("stale");
  expect(look({}, 6.001, null)).toBe("stale");
  expect(look({}, 1, null)).toBe("live");
  expect(look({}, 1, false)).toBe("not running");
  expect(look({ state: "stopped" }, 86_400, false)).toBe("stopped");
  expect(look({ state: "backing off" }, 1, true)).toBe("backing off");
});

test("lag grows after the daemon wrote, and is nothing when everything is stored", () => {
  expect(observeLagSeconds(status, nowMs + 60_000)).toBe(0);
  expect(observeLagSeconds({ ...status, lag_seconds: 5, oldest_unstored_at: at(5) }, nowMs + 60_000)).toBe(65);
  expect(observeLagSeconds({ ...status, lag_seconds: null }, nowMs)).toBeNull();
  expect(observeLagSeconds({ ...status, lag_seconds: 0, oldest_unstored_at: at(-5) }, nowMs)).toBe(0);
});

test("a verify marker remembers the newest clean run of each depth", () => {
  const problem = { destination: "/b", key: "app/L0/1", kind: "corrupt", message: "bad" };
  const deep = nextVerifyMarker(marker, "app", { ...run, mode: "deep", finished_at: at(-10) });
  expect(deep.last_clean).toMatchObject({ mode: "deep", finished_at: at(-10) });
  expect(deep.last_clean_deep).toEqual(deep.last_clean);
  const shallow = nextVerifyMarker(deep, "app", { ...run, finished_at: at(-20) });
  expect(shallow.last_clean).toMatchObject({ mode: "shallow", finished_at: at(-20) });
  expect(shallow.last_clean_deep).toMatchObject({ finished_at: at(-10) });
  const failed = nextVerifyMarker(shallow, "app", {
    ...run,
    outcome: "problems",
    problem_count: 50,
    problems: Array.from({ length: 50 }, () => problem),
    finished_at: at(-30),
  });
  expect(failed.last_run).toMatchObject({ outcome: "problems", problem_count: 50 });
  expect(failed.last_run.problems).toHaveLength(20);
  expect(failed.last_clean).toEqual(shallow.last_clean);
  expect(failed.last_clean_deep).toEqual(shallow.last_clean_deep);
});

async function readAfter<T>(path: string, content: string, read: (path: string) => Promise<T>): Promise<T> {
  writeFileSync(path, content);
  return await read(path);
}

/** The names of all fields at any depth; members of a free-form table such as `full_backups_by_reason` have a space. */
function fieldsOf(value: unknown): string[] {
  if (Array.isArray(value)) return value.flatMap(fieldsOf);
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([name, member]) => [
    ...(name.includes(" ") ? [] : [name]),
    ...fieldsOf(member),
  ]);
}
