import { BakeliteError, describeError, systemErrorCode } from "../util/errors.ts";

export type Level = "pass" | "warn" | "fail";

/** The names of the checks that the doctor itself makes; a backend adds some of its own. Explained in docs/doctor.md. */
export const CHECK_NAMES = [
  "configuration",
  "config file",
  "service",
  "open files",
  "metrics address",
  "temporary files",
  "database",
  "wal mode",
  "wal",
  "permissions",
  "file system",
  "disk space",
  "state directory",
  "instance lock",
  "status",
  "other replicators",
  "key file",
  "service paths",
  "destinations agree",
  "directory",
  "separate disk",
  "credentials",
  "reachable",
  "storage format",
  "encryption",
  "object times",
] as const;
export type CheckName = (typeof CHECK_NAMES)[number];

/** One thing that was looked at. */
export interface Check {
  /** A `CheckName`, or what a backend's `diagnose` calls it. */
  readonly check: string;
  readonly level: Level;
  /** What was found: a clause without a full stop. */
  readonly message: string;
  /** What to do next, an imperative without a full stop; null for what passed. */
  readonly fix: string | null;
}

export interface DestinationReport {
  /** Without credentials. */
  readonly location: string;
  readonly type: string;
  readonly async: boolean;
  readonly checks: readonly Check[];
}

export interface DatabaseReport {
  readonly name: string;
  /** As configured. */
  readonly path: string;
  readonly checks: readonly Check[];
  readonly destinations: readonly DestinationReport[];
}

export interface DoctorReport {
  /** The user that the daemon runs as, and whom permissions were checked for; null: not known. */
  readonly user: string | null;
  /** The unit file of the service that runs this configuration; null: there is none. */
  readonly service: string | null;
  /** What concerns no single database. */
  readonly host: readonly Check[];
  readonly databases: readonly DatabaseReport[];
}

export function pass(check: CheckName, message: string): Check {
  return { check, level: "pass", message, fix: null };
}

export function warn(check: CheckName, message: string, fix: string): Check {
  return { check, level: "warn", message, fix };
}

export function fail(check: CheckName, message: string, fix: string): Check {
  return { check, level: "fail", message, fix };
}

/** Every check of the report, in the order in which it is printed. */
export function allChecks({ host, databases }: DoctorReport): readonly Check[] {
  return [...host, ...databases.flatMap(checksOfDatabase)];
}

export function checksOfDatabase({ checks, destinations }: DatabaseReport): readonly Check[] {
  return [...checks, ...destinations.flatMap((destination) => destination.checks)];
}

/** The worst of them; `pass` when there is none. */
export function worstLevel(checks: readonly Check[]): Level {
  if (checks.some(({ level }) => level === "fail")) return "fail";
  return checks.some(({ level }) => level === "warn") ? "warn" : "pass";
}

export function countLevels(checks: readonly Check[]): Readonly<Record<Level, number>> {
  const counts = { pass: 0, warn: 0, fail: 0 };
  for (const { level } of checks) counts[level]++;
  return counts;
}

/** What a check says of a failure: `describeError`, but not what the system said where the message has it in words. */
export function describeForCheck(error: unknown): string {
  const isTold = error instanceof BakeliteError && error.code === "storage-denied";
  if (!isTold || systemErrorCode(error.cause) === undefined) return describeError(error);
  return error.subject === undefined ? error.message : `${error.message} (${error.subject})`;
}
