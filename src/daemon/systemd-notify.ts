import { dlopen, FFIType, ptr } from "bun:ffi";
import { describeError } from "../util/errors.ts";
import type { Logger } from "../util/logger.ts";

/** What systemd's Type=notify and WatchdogSec= understand. Source: sd_notify(3). */
export type Notification = "READY=1" | "STOPPING=1" | "WATCHDOG=1" | `STATUS=${string}`;

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0x80000;
const MSG_NOSIGNAL = 0x4000;
/** glibc, then musl. */
const C_LIBRARIES = ["libc.so.6", "libc.musl-x86_64.so.1", "libc.musl-aarch64.so.1"];

/**
 * Tells the service manager how the daemon fares. Node's and Bun's own sockets know no datagrams over AF_UNIX, so this
 * calls the C library, and only where `NOTIFY_SOCKET` names a socket. Telling it is never worth failing for: what goes
 * wrong is logged once and the rest stays silent.
 */
export class SystemdNotify {
  readonly #log: Logger;
  readonly #address: Uint8Array | null;
  readonly watchdogIntervalMs: number | null;
  #send: ((message: Uint8Array) => void) | null = null;
  #failed = false;

  constructor(env: Readonly<Record<string, string | undefined>>, log: Logger) {
    this.#log = log;
    this.#address = socketAddress(env["NOTIFY_SOCKET"]);
    const watchdogUs = Number(env["WATCHDOG_USEC"] ?? 0);
    const isForUs = env["WATCHDOG_PID"] === undefined || env["WATCHDOG_PID"] === String(process.pid);
    // Half of the deadline, as sd_watchdog_enabled(3) recommends.
    this.watchdogIntervalMs = this.#address !== null && isForUs && watchdogUs > 0 ? watchdogUs / 2000 : null;
  }

  tell(notification: Notification): void {
    if (this.#address === null || this.#failed) return;
    try {
      this.#send ??= openSender(this.#address);
      this.#send(new TextEncoder().encode(notification));
    } catch (error) {
      this.#failed = true;
      this.#log.warn("cannot notify systemd", { error: describeError(error) });
    }
  }
}

/** `struct sockaddr_un` for a path, or for an abstract name that starts with `@`; null when there is none that fits. */
export function socketAddress(name: string | undefined): Uint8Array | null {
  if (name === undefined || !/^[/@]./.test(name)) return null;
  const path = new TextEncoder().encode(name);
  if (path.byteLength > 107) return null;
  if (name.startsWith("@")) path[0] = 0;
  const address = new Uint8Array(2 + path.byteLength + (name.startsWith("@") ? 0 : 1));
  new DataView(address.buffer).setUint16(0, AF_UNIX, true);
  address.set(path, 2);
  return address;
}

function openSender(address: Uint8Array): (message: Uint8Array) => void {
  const { socket, sendto } = openLibrary();
  const descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) throw new Error("no socket could be made");
  return (message) => {
    const sent = sendto(descriptor, ptr(message), message.byteLength, MSG_NOSIGNAL, ptr(address), address.byteLength);
    if (Number(sent) !== message.byteLength) throw new Error("the socket in NOTIFY_SOCKET takes no message");
  };
}

function openLibrary() {
  const signatures = {
    socket: { args: [FFIType.i32, FFIType.i32, FFIType.i32], returns: FFIType.i32 },
    sendto: {
      args: [FFIType.i32, FFIType.ptr, FFIType.u64, FFIType.i32, FFIType.ptr, FFIType.u32],
      returns: FFIType.i64,
    },
  } as const;
  let failure: unknown;
  for (const library of C_LIBRARIES) {
    try {
      return dlopen(library, signatures).symbols;
    } catch (error) {
      failure = error;
    }
  }
  throw failure;
}
