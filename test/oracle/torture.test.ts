// deadline: 600 s
import { expect, test } from "bun:test";
import { runSeed } from "../support/random.ts";
import { describeReport, type TortureOptions, type TortureReport, torture } from "./torture.ts";

const TIMEOUT_MS = 280_000;

async function tortured(options: Omit<TortureOptions, "seed">): Promise<TortureReport> {
  const report = await torture({ ...options, seed: runSeed() });
  if (process.env["BAKELITE_TEST_REPORT"] === "1") console.log(describeReport(report));
  return report;
}

test(
  "30 s of three writers, one of them hostile, and 5 kills of the daemon lose nothing, and every restore is a moment of the database",
  async () => {
    const report = await tortured({ seconds: 30, writers: 3, kills: 5, program: "executable" });
    expect(report.daemonKills).toBeGreaterThanOrEqual(5);
    expect(report.commits).toBeGreaterThan(250);
    expect(report.restoredLatest + report.restoredAtTimes).toBeGreaterThan(5);
    expect(report.restoredAtRest).toBeGreaterThanOrEqual(15);
    expect(report.fullBackups).toEqual({ "first backup": 1 });
  },
  TIMEOUT_MS,
);

test(
  "an encryption that changes under writers, from plaintext to one key, to another and back, by a reencrypt that is killed as well, loses nothing",
  async () => {
    const report = await tortured({
      seconds: 6,
      writers: 2,
      kills: 0,
      stops: 0,
      restarts: 0,
      rotations: 3,
      writerOptions: { targetBytes: 512 * 1024 },
      program: "executable",
      settings: { debounce: "100ms", max_batch_delay: "300ms" },
    });
    expect(report.encryption.rotations).toBe(3);
    expect(report.daemonKills).toBeGreaterThanOrEqual(3);
    expect(report.restoredLatest + report.restoredAtTimes).toBeGreaterThan(5);
    expect(report.fullBackups).toEqual({ "first backup": 1 });
  },
  TIMEOUT_MS,
);

test(
  "full backups that begin all the time while change-sets go on, with a WAL that is always too large, restore the same states",
  async () => {
    const report = await tortured({
      seconds: 10,
      writers: 3,
      kills: 2,
      settings: {
        debounce: "20ms",
        max_batch_delay: "100ms",
        max_wal_size: "64KiB",
        snapshot_interval: "5s",
        max_segments_per_snapshot: 3,
      },
    });
    expect(report.fullBackups["change-set count"]).toBeGreaterThan(1);
    expect(report.indexes).toBeGreaterThan(10);
  },
  TIMEOUT_MS,
);

test(
  "full backups that begin between two change-sets hold no image that is gone again when the next one is encoded, and a mirror holds the same",
  async () => {
    const report = await tortured({
      seconds: 8,
      writers: ["normal", "python"],
      kills: 0,
      mirror: true,
      settings: { debounce: "300ms", max_batch_delay: "600ms", max_wal_size: "64KiB", snapshot_interval: "1s" },
    });
    expect(report.fullBackups["interval"]).toBeGreaterThan(1);
  },
  TIMEOUT_MS,
);
