import { describe, expect, test } from "bun:test";
import { formatFresh } from "../../src/cli/status-text.ts";
import { findTroubles, type Limits, observe, type Seen } from "../../src/state/observe.ts";
import { STATUS_STATES, type StatusFile } from "../../src/state/status.ts";
import { StatusFiles } from "./status-files.ts";

const NOW_MS = Date.UTC(2026, 4, 25, 12);
const files = new StatusFiles(NOW_MS, { pid: 4121, pid_start_ticks: "1", boot_id: "b", pid_namespace: "n" });
const ago = (seconds: number) => files.ago(seconds);

function seen(changes: Partial<StatusFile> = {}, others: Partial<Seen> = {}): Seen {
  return {
    nowMs: NOW_MS,
    status: { outcome: "read", value: files.status(changes) },
    isRunning: true,
    verify: { outcome: "missing", reason: "verify has not run" },
    ...others,
  };
}

function troubles(what: Seen, limits: Limits = {}): readonly string[] {
  return findTroubles(what, limits).map(({ kind, message }) => `[${kind}] ${message}`);
}

describe("what fails a check", () => {
  test("nothing of a database that is live, takes a later full backup, or began to start", () => {
    expect(troubles(seen())).toEqual([]);
    const full_backup_in_progress = { index: 40, reason: "interval", since: ago(60), progress: 0.5 };
    expect(troubles(seen({ state: "snapshotting", full_backup_in_progress }))).toEqual([]);
    expect(troubles(seen({ state: "starting", state_since: ago(60), full_backup: null, lag_seconds: null }))).toEqual(
      [],
    );
    expect(troubles(seen({}, { isRunning: null }))).toEqual([]);
  });

  const cases: readonly (readonly [string, Seen, string])[] = [
    [
      "not wal",
      seen({ state: "not wal", detail: "run: sqlite3 …", full_backup: null }),
      "[not wal] not wal: run: sqlite3 …",
    ],
    [
      "waiting",
      seen({ state: "waiting", detail: "the database file does not exist yet", full_backup: null }),
      "[waiting] waiting: the database file does not exist yet",
    ],
    ["stopped", seen({ state: "stopped", written_at: ago(7200) }), "[stopped] stopped 2h ago"],
    [
      "stopped with something left",
      seen({ state: "stopped", written_at: ago(60), detail: "3 change-sets could not be shipped before the stop" }),
      "[stopped] stopped 1m ago: 3 change-sets could not be shipped before the stop",
    ],
    [
      "not running",
      seen({ written_at: ago(7200) }, { isRunning: false }),
      "[not running] not running: the daemon (PID 4121) is gone and last reported 2h ago",
    ],
    [
      "stale, the process there",
      seen({ written_at: ago(192) }),
      "[stale] stale: the daemon has not reported for 3m12s, though PID 4121 exists",
    ],
    [
      "stale, in another PID namespace",
      seen({ written_at: ago(192) }, { isRunning: null }),
      "[stale] stale: the daemon has not reported for 3m12s",
    ],
    [
      "from the future",
      seen({ written_at: ago(-3600) }),
      `[stale] stale: its status is dated ${ago(-3600)}, in the future: was the clock set back?`,
    ],
    [
      "backing off",
      seen({ state: "backing off", unhealthy: files.unhealthy(192, 14) }),
      "[backing off] backing off: stuck for 3m12s (14 failed attempts): cannot store the object: no space left",
    ],
    [
      "backing off because of a lock",
      seen({ state: "backing off", detail: "another process has kept the database locked for 40 s" }),
      "[backing off] backing off: another process has kept the database locked for 40 s",
    ],
    [
      "starting for longer than a minute",
      seen({ state: "starting", state_since: ago(61), full_backup: null, lag_seconds: null }),
      "[starting] starting for 1m1s",
    ],
    [
      "starting since a moment in the future",
      seen({ state: "starting", state_since: ago(-3600), full_backup: null, lag_seconds: null }),
      `[starting] starting since ${ago(-3600)}, in the future: was the clock set back?`,
    ],
    [
      "a first full backup under way",
      seen({
        state: "snapshotting",
        full_backup: null,
        full_backup_in_progress: { index: 1, reason: "first backup", since: ago(60), progress: 0.439 },
      }),
      "[no full backup] the first full backup is not finished (43%)",
    ],
    ["no full backup at all", seen({ full_backup: null }), "[no full backup] the first full backup is not finished"],
    [
      "an incomplete destination",
      seen({ destinations: [files.destination(), files.destination({ location: "/mnt/b", state: "incomplete" })] }),
      "[incomplete destination] destination /mnt/b is incomplete",
    ],
    [
      "one destination of two that fails",
      seen({
        destinations: [
          files.destination(),
          files.destination({ location: "/mnt/b", state: "backing off", unhealthy: files.unhealthy(60, 1) }),
        ],
      }),
      "[failing destination] destination /mnt/b is backing off: stuck for 1m (1 failed attempt): cannot store the object: no space left",
    ],
    [
      "no status file",
      seen({}, { status: { outcome: "missing", reason: "the daemon has not run" }, isRunning: null }),
      "[no status] no status: the daemon has not run",
    ],
    [
      "a status file of no use",
      seen({}, { status: { outcome: "unreadable", reason: "it is not JSON" }, isRunning: null }),
      "[unreadable] unreadable: it is not JSON",
    ],
  ];
  test.each(cases)("%s", (_, what, expected) => {
    expect(troubles(what)).toEqual([expected]);
  });

  test("a mirror is behind by design and fails nothing", () => {
    const mirror = files.destination({ async: true, state: "incomplete" });
    expect(troubles(seen({ destinations: [files.destination(), mirror] }))).toEqual([]);
  });

  test("a database that backs off before it has read the replica is not told that it has no full backup", () => {
    const all = troubles(seen({ state: "backing off", full_backup: null, unhealthy: files.unhealthy(60, 2) }));
    expect(all).toEqual([expect.stringContaining("[backing off]")]);
  });

  test("every state that the daemon publishes is well or has a reason", () => {
    for (const state of STATUS_STATES) {
      const isWell = ["live", "snapshotting", "starting"].includes(state);
      expect([state, troubles(seen({ state, state_since: ago(1) })).length]).toEqual([state, isWell ? 0 : 1]);
    }
  });
});

describe("--max-lag", () => {
  const limits = { maxLagMs: 600_000 };

  test("allows exactly so much", () => {
    expect(troubles(seen({ lag_seconds: 600 }), limits)).toEqual([]);
    expect(troubles(seen({ lag_seconds: 661, oldest_unstored_at: ago(661) }), limits)).toEqual([
      "[lag] 11m1s behind, more than 10m",
    ]);
  });

  test("while the daemon reports, its own measurement counts; afterwards the clock", () => {
    const behind = { lag_seconds: 0.2, oldest_unstored_at: ago(601) };
    expect(troubles(seen(behind), limits)).toEqual([]);
    expect(troubles(seen({ ...behind, written_at: ago(600) }, { isRunning: false }), limits)).toEqual([
      "[not running] not running: the daemon (PID 4121) is gone and last reported 10m ago",
      "[lag] 10m1s behind, more than 10m",
    ]);
  });

  test("a lag that a replicating daemon does not know is trouble; of other states the state is enough", () => {
    expect(troubles(seen({ lag_seconds: null }), limits)).toEqual(["[lag] it is not known how far behind it is"]);
    expect(troubles(seen({ lag_seconds: null, state: "starting", state_since: ago(5) }), limits)).toEqual([]);
    expect(troubles(seen({ lag_seconds: null, state: "waiting" }), limits)).toHaveLength(1);
  });
});

describe("--max-verify-age", () => {
  const limits = { maxVerifyAgeMs: 36 * 3_600_000 };
  const verified = (value: ReturnType<StatusFiles["verify"]>) => seen({}, { verify: { outcome: "read", value } });

  test("without it verify does not count", () => {
    expect(troubles(verified(files.verifyProblems(60)))).toEqual([]);
  });

  test("a clean run counts from its end", () => {
    expect(troubles(verified(files.verify(36 * 3600)), limits)).toEqual([]);
    expect(troubles(verified(files.verify(37 * 3600)), limits)).toEqual([
      "[verify] last verified clean 1d13h ago, more than 1d12h",
    ]);
  });

  test("never verified, problems found since, an unreadable marker, and one from the future fail", () => {
    expect(troubles(seen(), limits)).toEqual(["[verify] never verified"]);
    expect(troubles(verified(files.verifyProblems(60)), limits)).toEqual(["[verify] verify found 2 problems 1m ago"]);
    expect(troubles(verified({ ...files.verify(60), last_clean: null }), limits)).toEqual([
      "[verify] never verified clean",
    ]);
    expect(troubles(verified(files.verify(-3600)), limits)[0]).toContain("in the future");
    const unreadable = seen({}, { verify: { outcome: "unreadable", reason: "it is not JSON" } });
    expect(troubles(unreadable, limits)).toEqual(["[verify] the result of verify cannot be read: it is not JSON"]);
  });
});

describe("what one sees", () => {
  test("a dead daemon's last word is not taken for the present", () => {
    expect(observe(seen())).toEqual({ state: "live", lagSeconds: 0 });
    expect(observe(seen({}, { isRunning: false }))).toEqual({ state: "not running", lagSeconds: null });
    expect(observe(seen({ written_at: ago(16) }))).toEqual({ state: "stale", lagSeconds: null });
    expect(observe(seen({ written_at: ago(15) })).state).toBe("live");
    expect(observe(seen({ written_at: ago(-15) })).state).toBe("live");
    expect(observe(seen({ written_at: ago(-16) })).state).toBe("stale");
    expect(observe(seen({ written_at: ago(-16) }, { isRunning: false })).state).toBe("not running");
    expect(observe(seen({ state: "stopped", written_at: ago(9000) }, { isRunning: false })).state).toBe("stopped");
  });

  test.each([
    [null, "unknown"],
    [0, "live"],
    [0.999, "live"],
    [1, "-1s"],
    [12.9, "-12s"],
    [192, "-3m"],
    [7300, "-2h"],
    [200_000, "-2d"],
  ])("a lag of %p seconds is shown as %p", (lag, shown) => {
    expect(formatFresh(lag)).toBe(shown);
  });
});
