import { createHash, randomBytes } from "node:crypto";
import { readMachineIdentity } from "../state/machine.ts";
import { isProcessRunning, type ProcessIdentity, readOwnIdentity } from "../state/process-identity.ts";

/** Which process a staging file belongs to, as far as its name tells. */
export interface StagingOwner {
  readonly pid: number;
  /** As in `ProcessIdentity`, 0 where the system does not tell. */
  readonly startTicks: string;
  /** 8 hex digits of hashes: of the machine, of its boot, and of the namespace that PIDs are counted in. */
  readonly machine: string;
  readonly boot: string;
  readonly namespace: string;
}

/** Without a sign of life for this long, a process that cannot be looked for counts as gone: 20 of them are missing. */
const SILENCE_MS = 10 * 60_000;

const SUFFIX = /^(\d{1,10})-(\d{1,20})-([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})-[0-9a-f]{8}$/;

/** `<pid>-<start ticks>-<machine>-<boot>-<namespace>-<random>`: never the same twice, and never that of another process. */
export async function createStagingSuffix(): Promise<string> {
  const { pid, startTicks, machine, boot, namespace } = await readOwnMark();
  return [pid, startTicks, machine, boot, namespace, randomBytes(4).toString("hex")].join("-");
}

/** null: not the name of a staging file. Pure. */
export function parseStagingSuffix(suffix: string): StagingOwner | null {
  const [, pid, startTicks, machine, boot, namespace] = SUFFIX.exec(suffix) ?? [];
  if (pid === undefined || startTicks === undefined) return null;
  if (machine === undefined || boot === undefined || namespace === undefined) return null;
  return Number(pid) < 1 ? null : { pid: Number(pid), startTicks, machine, boot, namespace };
}

/**
 * Whether the process that made a staging file is gone. On this machine that is known: an earlier boot's processes are,
 * and those of our PID namespace can be looked for. In another container, or on another machine that shares the disk, nobody
 * can look: there it counts as gone once the file has shown no sign of life for ten minutes (`silentMs`, by its modification
 * time; two machines whose clocks differ by that much would have to restore to one place).
 */
export async function isStagingAbandoned(owner: StagingOwner, silentMs: number): Promise<boolean> {
  const own = await readOwnMark();
  const isHere = owner.machine === own.machine;
  if (isHere && owner.boot !== own.boot) return true;
  if (!isHere || owner.namespace !== own.namespace) return silentMs > SILENCE_MS;
  const identity: ProcessIdentity = {
    ...own.identity,
    pid: owner.pid,
    pid_start_ticks: owner.startTicks === "0" ? null : owner.startTicks,
  };
  return (await isProcessRunning(identity)) === false;
}

async function readOwnMark(): Promise<StagingOwner & { readonly identity: ProcessIdentity }> {
  const identity = await readOwnIdentity();
  const { machineId } = await readMachineIdentity();
  return {
    identity,
    pid: identity.pid,
    startTicks: identity.pid_start_ticks ?? "0",
    machine: shortHash(machineId),
    boot: shortHash(identity.boot_id),
    namespace: shortHash(identity.pid_namespace),
  };
}

/** Enough to tell a few machines apart, and no way back to an id that others should not see. */
function shortHash(id: string | null): string {
  return createHash("sha256")
    .update(id ?? "")
    .digest("hex")
    .slice(0, 8);
}
