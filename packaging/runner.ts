import { existsSync } from "node:fs";
import { hostTargetName, type TargetName } from "./targets.ts";

/** How an executable for some target can be run on this machine. */
export type Runner =
  | {
      readonly canRun: true;
      /** What goes before the executable: nothing, or an emulator with its arguments. */
      readonly command: readonly string[];
      /** For people: `native`, `qemu-aarch64-static`. */
      readonly how: string;
    }
  | { readonly canRun: false; readonly reason: string };

interface Emulation {
  /** Programs that do it, any one of them. */
  readonly emulators: readonly string[];
  /** In the folder that holds the target's libraries, what must be there. */
  readonly libraries: readonly string[];
  /** Where that folder is by default. */
  readonly root: string;
  /** What to install for that. */
  readonly advice: string;
}

const ARM64 = ["qemu-aarch64-static", "qemu-aarch64"];
const X64 = ["qemu-x86_64-static", "qemu-x86_64"];

/** QEMU's user mode, which runs a program for another processor or with another C library. */
const EMULATIONS: Partial<Record<TargetName, Emulation>> = {
  "linux-x64": {
    emulators: X64,
    libraries: ["lib64/ld-linux-x86-64.so.2"],
    root: "/usr/x86_64-linux-gnu",
    advice: "Debian's qemu-user-static and libc6-amd64-cross",
  },
  "linux-arm64": {
    emulators: ARM64,
    libraries: ["lib/ld-linux-aarch64.so.1"],
    root: "/usr/aarch64-linux-gnu",
    advice: "Debian's qemu-user-static and libc6-arm64-cross",
  },
  "linux-x64-musl": {
    emulators: X64,
    libraries: ["lib/ld-musl-x86_64.so.1", "usr/lib/libstdc++.so.6"],
    root: "/usr/x86_64-linux-musl",
    advice: "qemu-user-static, and a folder with musl, libstdc++ and libgcc such as an Alpine image",
  },
  "linux-arm64-musl": {
    emulators: ARM64,
    libraries: ["lib/ld-musl-aarch64.so.1", "usr/lib/libstdc++.so.6"],
    root: "/usr/aarch64-linux-musl",
    advice: "qemu-user-static, and a folder with musl, libstdc++ and libgcc such as an Alpine image",
  },
};

/** `root`: the folder that holds the target's libraries, laid out as that system's own root. */
export function chooseRunner(target: TargetName, root?: string): Runner {
  if (target === hostTargetName()) return { canRun: true, command: [], how: "native" };
  const emulation = EMULATIONS[target];
  if (emulation === undefined) return { canRun: false, reason: "nothing here runs programs for macOS" };
  if (process.platform !== "linux") return { canRun: false, reason: "programs for Linux run on Linux only" };
  const emulator = emulation.emulators.map((name) => Bun.which(name)).find((path) => path !== null);
  if (emulator === undefined || emulator === null)
    return { canRun: false, reason: `${emulation.emulators[0]} is not installed (${emulation.advice})` };
  const folder = root ?? emulation.root;
  const missing = emulation.libraries.find((name) => !existsSync(`${folder}/${name}`));
  if (missing !== undefined)
    return { canRun: false, reason: `${folder}/${missing} is not there (${emulation.advice})` };
  return { canRun: true, command: [emulator, "-L", folder], how: emulator.split("/").at(-1) ?? emulator };
}
