import type { MirrorEntry } from "../state/mirror-status.ts";
import { type Found, findTroubles, type Trouble } from "../state/observe.ts";
import type { StatusFile } from "../state/status.ts";
import type { VerifyMarker } from "../state/verify-marker.ts";

/** What the daemon itself knows of one database at this moment. */
export interface DatabaseReport {
  /** What its status file would say if it were written now. */
  readonly status: StatusFile;
  /** How long another process has kept the database locked; null while it does not. */
  readonly lockedOutMs: number | null;
  /** Calls to each of its destinations, by location, that failed in this run. */
  readonly failures: ReadonlyMap<string, number>;
  /** Its background mirrors, as `<name>.mirror.json` tells of them. */
  readonly mirrors: readonly MirrorEntry[];
}

/** One database as it is told to whoever asks over HTTP. */
export interface DatabaseView extends DatabaseReport {
  readonly verify: Found<VerifyMarker>;
  /** Everything for which `status --check` would fail; empty when the database is well. */
  readonly troubles: readonly Trouble[];
}

export interface DaemonView {
  readonly nowMs: number;
  /** When the daemon started, Unix milliseconds. */
  readonly startedMs: number;
  /** By name. */
  readonly databases: readonly DatabaseView[];
}

/** Pure: the rule of `bakelite status --check` over what was gathered, see `findTroubles`. */
export function viewDaemon(
  reports: readonly DatabaseReport[],
  { nowMs, startedMs, verifyOf }: Omit<DaemonView, "databases"> & { verifyOf(name: string): Found<VerifyMarker> },
): DaemonView {
  const databases = reports.map((report): DatabaseView => {
    const verify = verifyOf(report.status.database);
    const seen = { nowMs, status: { outcome: "read", value: report.status }, isRunning: true, verify } as const;
    return { ...report, verify, troubles: findTroubles(seen) };
  });
  return { nowMs, startedMs, databases: databases.sort((a, b) => compare(a.status.database, b.status.database)) };
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
