import { readdirSync, readFileSync } from "node:fs";

/** What the kernel says that one process has and has used. Source: proc_pid_status(5), proc_pid_stat(5), proc_pid_io(5). */
export interface ProcessFigures {
  /** Memory that is resident now (VmRSS), and the most that ever was (VmHWM). Pages of the executable count. */
  readonly residentBytes: number;
  readonly peakBytes: number;
  /** Of `residentBytes`, what no other process could share (RssAnon). */
  readonly anonymousBytes: number;
  readonly threads: number;
  readonly descriptors: number;
  /** User and system time of all its threads, also those that ended. */
  readonly cpuSeconds: number;
  /** Sent towards a disk, as far as it was not deleted before it got there. */
  readonly writtenBytes: number;
  /** Calls of write(2) and its kin, to whatever: files, pipes, sockets. */
  readonly writeCalls: number;
}

/** USER_HZ, which is 100 on every Linux that Bun runs on. Source: sysconf(3), _SC_CLK_TCK. */
const TICKS_PER_SECOND = 100;

/** Throws when there is no such process. */
export function processFigures(pid: number): ProcessFigures {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const io = readFileSync(`/proc/${pid}/io`, "utf8");
  return {
    residentBytes: field(status, "VmRSS") * 1024,
    peakBytes: field(status, "VmHWM") * 1024,
    anonymousBytes: field(status, "RssAnon") * 1024,
    threads: field(status, "Threads"),
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    cpuSeconds: cpuSecondsOf(readFileSync(`/proc/${pid}/stat`, "utf8"), 2),
    writtenBytes: field(io, "write_bytes"),
    writeCalls: field(io, "syscw"),
  };
}

/** The most memory that was resident so far; null when the process has ended. */
export function peakBytesOf(pid: number): number | null {
  try {
    const kibibytes = field(readFileSync(`/proc/${pid}/status`, "utf8"), "VmHWM");
    return Number.isNaN(kibibytes) ? null : kibibytes * 1024; // A process that nobody has waited for yet has no memory.
  } catch {
    return null;
  }
}

/** Milliseconds that this process's main thread was ready to run and had no processor. Source: the kernel's scheduler/sched-stats.rst. */
export function waitedForProcessorMs(): number {
  return Number(readFileSync("/proc/self/schedstat", "utf8").split(" ")[1]) / 1e6;
}

/** CPU seconds of this process and of its children that have ended and were waited for. */
export function ownCpuSeconds(): number {
  return cpuSecondsOf(readFileSync("/proc/self/stat", "utf8"), 4);
}

/** CPU seconds that all of the machine has been busy since it booted, with time that its host took away. */
export function machineBusySeconds(): number {
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = (
    /^cpu +(.*)$/m.exec(readFileSync("/proc/stat", "utf8"))?.[1] ?? ""
  )
    .split(" ")
    .map(Number);
  return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND;
}

/** Processes whose parent is this one, but for those that have ended and wait to be waited for. */
export function childPids(): readonly number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((name) => {
      try {
        const [state, parent] = fieldsOfStat(readFileSync(`/proc/${name}/stat`, "utf8"));
        return parent === `${process.pid}` && state !== "Z";
      } catch {
        return false; // It has ended meanwhile.
      }
    })
    .map(Number);
}

/** utime and stime, and with `fieldCount` 4 also cutime and cstime. */
function cpuSecondsOf(stat: string, fieldCount: 2 | 4): number {
  const UTIME = 11; // the 14th field, counted from the third
  const ticks = fieldsOfStat(stat).slice(UTIME, UTIME + fieldCount);
  return ticks.reduce((total, value) => total + Number(value), 0) / TICKS_PER_SECOND;
}

/** The fields from the third on: the second is a name in brackets that may hold anything. */
function fieldsOfStat(stat: string): readonly string[] {
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
}

function field(text: string, name: string): number {
  const value = new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1];
  return value === undefined ? Number.NaN : Number(value);
}
