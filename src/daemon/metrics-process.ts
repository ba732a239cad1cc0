import { readdirSync, readFileSync } from "node:fs";
import type { Family } from "./metrics-text.ts";

/** What the system says of this process; null where it does not say. */
export interface ProcessFigures {
  readonly cpuSeconds: number;
  readonly residentBytes: number;
  readonly virtualBytes: number | null;
  readonly startMs: number;
  readonly openFiles: number | null;
  readonly maxOpenFiles: number | null;
}

/** Reads of `/proc` touch no disk. Elsewhere, as on macOS, three figures are missing. */
export function readProcessFigures(startMs: number): ProcessFigures {
  const { user, system } = process.cpuUsage();
  return {
    cpuSeconds: (user + system) / 1e6,
    residentBytes: process.memoryUsage.rss(),
    virtualBytes: parseVirtualBytes(readProc("status")),
    startMs,
    openFiles: countOpenFiles(),
    maxOpenFiles: parseMaxOpenFiles(readProc("limits")),
  };
}

/**
 * The names that every Prometheus client library uses, so that ready-made dashboards find them. Source:
 * https://prometheus.io/docs/instrumenting/writing_clientlibs/ "Process metrics".
 */
export function processFamilies(figures: ProcessFigures): readonly Family[] {
  const { cpuSeconds, residentBytes, virtualBytes, startMs, openFiles, maxOpenFiles } = figures;
  return [
    one("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", cpuSeconds),
    one("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", residentBytes),
    one("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", virtualBytes),
    one("process_start_time_seconds", "gauge", "Start time of the process in seconds since 1970.", startMs / 1000),
    one("process_open_fds", "gauge", "Number of open file descriptors.", openFiles),
    one("process_max_fds", "gauge", "Maximum number of open file descriptors.", maxOpenFiles),
  ];
}

function one(name: string, type: Family["type"], help: string, value: number | null): Family {
  return { name, type, help, samples: value === null ? [] : [{ labels: {}, value }] };
}

/** The soft limit in `/proc/self/limits`; null when there is none or no such file. Source: proc_pid_limits(5). */
export function parseMaxOpenFiles(limits: string): number | null {
  const soft = /^Max open files\s+(\d+)/m.exec(limits)?.[1];
  return soft === undefined ? null : Number(soft);
}

/** `VmSize:   123 kB` of `/proc/self/status`, which are KiB. Source: proc_pid_status(5). */
export function parseVirtualBytes(status: string): number | null {
  const kib = /^VmSize:\s+(\d+) kB$/m.exec(status)?.[1];
  return kib === undefined ? null : Number(kib) * 1024;
}

function readProc(name: "status" | "limits"): string {
  try {
    return readFileSync(`/proc/self/${name}`, "latin1");
  } catch {
    return "";
  }
}

function countOpenFiles(): number | null {
  try {
    // One of them is that of the listing itself.
    return readdirSync("/proc/self/fd").length - 1;
  } catch {
    return null;
  }
}
