import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { statOrNull } from "./doctor-files.ts";
import { readUnit, unitDirectories } from "./doctor-service.ts";

/** What this host's systemd, if it has one, knows of bakelite. */
export interface SystemService {
  readonly unit: "none" | "masked" | "there";
  /** systemd runs this host now, and not merely lies in an image of it. */
  readonly isRunning: boolean;
  /** Where settings for the daemon, and for the services beside it, belong. */
  readonly dropInPaths: readonly string[];
  /** Timers of ours that are installed. */
  readonly timers: readonly string[];
}

/** The number puts it before what an administrator adds, which then counts. */
const DROP_IN_NAME = "10-init.conf";
/** `bakelite-.service.d` is for every unit whose name begins so. Source: systemd.unit(5) */
const DROP_IN_FOLDERS = ["bakelite.service.d", "bakelite-.service.d"];
const WANTED_TIMERS = ["bakelite-check.timer", "bakelite-verify.timer"];

export async function lookAtService(env: Readonly<Record<string, string | undefined>>): Promise<SystemService> {
  const directories = unitDirectories(env["SYSTEMD_UNIT_PATH"]);
  const found = await readUnit(directories);
  const files = (await Promise.all(directories.map((path) => readdir(path).catch(() => [])))).flat();
  const [own = "/etc/systemd/system"] = directories;
  return {
    unit: found.kind === "none" || found.kind === "masked" ? found.kind : "there",
    // Source: sd_booted(3)
    isRunning: (await statOrNull("/run/systemd/system")) !== null,
    dropInPaths: DROP_IN_FOLDERS.map((folder) => join(own, folder, DROP_IN_NAME)),
    timers: WANTED_TIMERS.filter((timer) => files.includes(timer)),
  };
}
