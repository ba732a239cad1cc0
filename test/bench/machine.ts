import { readFileSync, statSync } from "node:fs";
import { availableParallelism, loadavg, release, totalmem } from "node:os";
import { executablePath } from "../support/executable.ts";
import type { Litestream } from "./litestream.ts";

/** Where and with what a run was made, for its heading. `directory` is where databases and backups are written. */
export function describeMachine(
  directory: string,
  litestream: Litestream | null,
): readonly (readonly [string, string])[] {
  const asked = Bun.spawnSync([executablePath(), "version", "--json"], { stdin: "ignore", stderr: "inherit" });
  if (!asked.success) throw new Error(`${executablePath()} version failed`);
  const version = JSON.parse(asked.stdout.toString()) as Readonly<Record<string, string>>;
  return [
    ["processor", processor()],
    ["cores", `${availableParallelism()}`],
    ["memory", `${Math.round(totalmem() / 2 ** 30)} GiB`],
    ["kernel", release().replace(/-.*/, "")],
    ["file system", fileSystemOf(directory)],
    ["load before", `${(loadavg()[0] ?? 0).toFixed(1)} (1 minute)`],
    [
      "bakelite",
      `${version["version"]} (${version["date"]}), Bun ${version["bun_version"]}, SQLite ${version["sqlite_version"]}`,
    ],
    ["Litestream", litestream?.version ?? "not found: nothing is compared with it"],
  ];
}

function processor(): string {
  const cpuinfo = readFileSync("/proc/cpuinfo", "utf8");
  const model = /^model name\s*: (.*)$/m.exec(cpuinfo)?.[1] ?? process.arch;
  // The processor says so itself. Source: CPUID leaf 1, ECX bit 31.
  return /^flags\s*:.*\bhypervisor\b/m.test(cpuinfo) ? `${model}, a virtual machine` : model;
}

/** Type and device of the mount that holds `directory`. Source: proc_pid_mountinfo(5). */
function fileSystemOf(directory: string): string {
  const { dev } = statSync(directory);
  // The C library's encoding of a device number. Source: makedev(3).
  const major = (Math.floor(dev / 2 ** 8) & 0xfff) + (Math.floor(dev / 2 ** 32) & ~0xfff);
  const minor = (dev & 0xff) + (Math.floor(dev / 2 ** 12) & ~0xff);
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const [mount = "", source = ""] = line.split(" - ");
    if (mount.split(" ")[2] === `${major}:${minor}`) return source.split(" ")[0] ?? "unknown";
  }
  return "unknown";
}
