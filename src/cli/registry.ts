import type { Command } from "./command.ts";

export interface RegistryEntry {
  readonly name: string;
  /** One line for the list of commands. */
  readonly summary: string;
  /** Imports the command's file, and with it only what that command needs: `bakelite --version` must be quick. */
  load(): Promise<Command>;
}

/** Every command, in the order of `bakelite --help`. */
export const registry: readonly RegistryEntry[] = [
  {
    name: "init",
    summary: "Set up a running backup: ask, or do it unattended",
    load: async () => (await import("./commands/init.ts")).command,
  },
  {
    name: "daemon",
    summary: "Back up every configured database continuously",
    load: async () => (await import("./commands/daemon.ts")).command,
  },
  {
    name: "list",
    summary: "Show what can be restored",
    load: async () => (await import("./commands/list.ts")).command,
  },
  {
    name: "status",
    summary: "Show what the daemon is doing, or check that all is well",
    load: async () => (await import("./commands/status.ts")).command,
  },
  {
    name: "restore",
    summary: "Reconstruct a database: its latest state or any recorded moment",
    load: async () => (await import("./commands/restore.ts")).command,
  },
  {
    name: "verify",
    summary: "Check that what is stored is intact and can be restored",
    load: async () => (await import("./commands/verify.ts")).command,
  },
  {
    name: "repair",
    summary: "Heal damaged and missing objects from another destination",
    load: async () => (await import("./commands/repair.ts")).command,
  },
  {
    name: "usage",
    summary: "Show how much is stored, and what no listing shows",
    load: async () => (await import("./commands/usage.ts")).command,
  },
  {
    name: "keep",
    summary: "Mark a restore point, so that it stays for ever",
    load: async () => (await import("./commands/keep.ts")).command,
  },
  {
    name: "compact",
    summary: "Merge older change-sets into fewer objects",
    load: async () => (await import("./commands/compact.ts")).command,
  },
  {
    name: "prune",
    summary: "Delete what the policy no longer keeps",
    load: async () => (await import("./commands/prune.ts")).command,
  },
  {
    name: "reclaim",
    summary: "Abort uploads to S3 that nobody finished",
    load: async () => (await import("./commands/reclaim.ts")).command,
  },
  {
    name: "keygen",
    summary: "Make a new key for encryption at rest",
    load: async () => (await import("./commands/keygen.ts")).command,
  },
  {
    name: "reencrypt",
    summary: "Rewrite what is stored: encrypt it, change its key, or decrypt it",
    load: async () => (await import("./commands/reencrypt.ts")).command,
  },
  {
    name: "doctor",
    summary: "Check all that the daemon needs, without writing anything",
    load: async () => (await import("./commands/doctor.ts")).command,
  },
  {
    name: "config",
    summary: "Show the effective policy of each database and where it comes from",
    load: async () => (await import("./commands/config.ts")).command,
  },
  {
    name: "version",
    summary: "Show the versions of bakelite, its storage format and its parts",
    load: async () => (await import("./commands/version.ts")).command,
  },
  {
    name: "help",
    summary: "Show help for bakelite or for one command",
    load: async () => (await import("./commands/help.ts")).command,
  },
];
