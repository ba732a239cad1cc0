import { readFile } from "node:fs/promises";
import { hostname } from "node:os";

export interface MachineIdentity {
  /** Stays over restarts, differs between machines (not always between clones); null when the system tells nothing. */
  readonly machineId: string | null;
  /** Differs after each boot; null where the system does not tell. */
  readonly bootId: string | null;
}

/**
 * Who we run on: `/etc/machine-id`, else D-Bus's copy, else the host name. In a container without a machine id the host
 * name usually is the container's own id, so a new container counts as another machine. Boot id: Linux only.
 */
export async function readMachineIdentity(): Promise<MachineIdentity> {
  const machineId =
    (await readId("/etc/machine-id")) ?? (await readId("/var/lib/dbus/machine-id")) ?? hostNameId(hostname());
  return { machineId, bootId: await readId("/proc/sys/kernel/random/boot_id") };
}

/** The trimmed content when it looks like an id: hex digits and dashes. systemd writes "uninitialized" at first boot. */
async function readId(path: string): Promise<string | null> {
  try {
    const text = (await readFile(path, "latin1")).trim();
    return /^[0-9a-f-]{16,64}$/i.test(text) && /[^0-]/.test(text) ? text : null;
  } catch {
    return null;
  }
}

function hostNameId(name: string): string | null {
  return name === "" || name === "localhost" ? null : `host:${name}`;
}
