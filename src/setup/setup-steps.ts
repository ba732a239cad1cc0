import type { Stats } from "node:fs";
import { chmod, lchown, lstat, mkdir, readdir, readFile, rmdir, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { createKeyFile } from "../config/key-file.ts";
import { syncDirectory, writeFileAtomically } from "../util/atomic-file.ts";
import { BakeliteError, describeError } from "../util/errors.ts";
import { systemError } from "../util/system-error.ts";
import { lstatOrNull, statOrNull } from "./doctor-files.ts";

/** One change to this machine, shown before it is made. */
export interface Step {
  /** An order: `write /etc/bakelite/bakelite.toml`. */
  readonly what: string;
  /** What a person wants to see before agreeing, without secrets; null: nothing more. */
  readonly shown: string | null;
  /** What fails is said, and the rest goes on. */
  readonly isOptional?: boolean;
  /** Makes the change, all of it or none, and resolves to what takes it back; null where nothing can. */
  run(): Promise<Undo | null>;
}

export type Undo = () => Promise<void>;

export interface Owner {
  readonly uid: number;
  readonly gid: number;
}

export interface StepReport {
  readonly done: (step: Step) => void;
  readonly failed: (step: Step, error: unknown) => void;
}

/**
 * Makes the changes in order. When one fails, or the signal is aborted, those that were made are taken back in reverse, and what
 * was wrong is thrown. Steps that may fail are only reported.
 */
export async function applySteps(steps: readonly Step[], report: StepReport, signal: AbortSignal): Promise<void> {
  const undos: Undo[] = [];
  try {
    for (const step of steps) {
      signal.throwIfAborted();
      try {
        const undo = await step.run();
        if (undo !== null) undos.push(undo);
        report.done(step);
      } catch (error) {
        if (step.isOptional !== true) throw error;
        report.failed(step, error);
      }
    }
    signal.throwIfAborted();
  } catch (error) {
    const left: string[] = [];
    for (const undo of undos.reverse())
      await undo().catch((failure: unknown) => {
        left.push(describeError(failure));
      });
    if (left.length === 0) throw error;
    throw new BakeliteError("io", `${describeError(error)}; and not all could be taken back: ${left.join("; ")}`, {
      cause: error,
    });
  }
}

/** Makes a directory with all that is missing above it; the last one gets `owner` and `mode`, also when it was there. */
export function makeDirectory(path: string, owner: Owner | null, mode: number): Step {
  return {
    what: `make the directory ${path}`,
    shown: null,
    async run() {
      const made: string[] = [];
      const undo = async () => {
        for (const each of made.reverse()) await rmdir(each);
      };
      try {
        for (const missing of await missingDirectories(path)) {
          await mkdir(missing, { mode: missing === path ? mode : 0o755 });
          made.push(missing);
        }
        if (made.length > 0 && owner !== null) await lchown(path, owner.uid, owner.gid);
        return undo;
      } catch (cause) {
        await undo().catch(() => {});
        throw systemError("cannot make the directory", path, cause);
      }
    },
  };
}

/** From above to below. */
async function missingDirectories(path: string): Promise<readonly string[]> {
  const missing: string[] = [];
  for (let place = path; (await statOrNull(place)) === null; place = dirname(place)) missing.unshift(place);
  return missing;
}

export interface FileToWrite {
  readonly path: string;
  readonly text: string;
  readonly mode: number;
  readonly owner: Owner | null;
  /** What a person is shown in place of the text. */
  readonly shown?: string;
  /** Where what it replaces is kept; null: it is not. */
  readonly keepAs?: string | null;
}

export function writeFile({ path, text, mode, owner, shown, keepAs = null }: FileToWrite): Step {
  return {
    what: `write ${path} (mode ${mode.toString(8).padStart(4, "0")})${keepAs === null ? "" : `, and keep the old one as ${keepAs}`}`,
    shown: shown ?? text,
    async run() {
      const before = await readIfThere(path);
      if (before !== null && keepAs !== null) await writeFileAtomically(keepAs, before.bytes, optionsOf(before.info));
      await writeFileAtomically(path, text, { mode, ...(owner === null ? {} : { owner }) });
      return async () => {
        if (before === null) await unlink(path);
        else await writeFileAtomically(path, before.bytes, optionsOf(before.info));
        if (before !== null && keepAs !== null) await unlink(keepAs);
      };
    },
  };
}

async function readIfThere(path: string): Promise<{ readonly bytes: Uint8Array; readonly info: Stats } | null> {
  const info = await statOrNull(path);
  if (info === null) return null;
  if (!info.isFile())
    throw new BakeliteError("output-exists", "something that is no regular file is there", { subject: path });
  return { bytes: await readFile(path), info };
}

function optionsOf({ mode, uid, gid }: Stats): { readonly mode: number; readonly owner?: Owner } {
  // Only root may give files away, and only root needs to.
  return process.geteuid?.() === 0 ? { mode: mode & 0o7777, owner: { uid, gid } } : { mode: mode & 0o7777 };
}

/** A new key file of mode 0600. Never replaces anything. */
export function makeKey(path: string, keyText: string, owner: Owner | null, because = "make a new key"): Step {
  return {
    what: `${because}: ${path} (mode 0600)`,
    shown: null,
    async run() {
      await createKeyFile(path, keyText);
      const undo = async () => {
        await unlink(path);
        await syncDirectory(dirname(path));
      };
      try {
        if (owner !== null) await lchown(path, owner.uid, owner.gid);
      } catch (cause) {
        await undo().catch(() => {});
        throw systemError("cannot give the key file to its user", path, cause);
      }
      return undo;
    },
  };
}

export interface Ownership {
  readonly path: string;
  readonly owner: Owner;
  /** `app:app`, for people. */
  readonly ownerName: string;
  /** Bits that the mode gets beside its own; 0 for none. */
  readonly addMode?: number;
  /** With all that is below it, links themselves and not what they lead to. */
  readonly recursive?: boolean;
}

export function giveTo({ path, owner, ownerName, addMode = 0, recursive = false }: Ownership): Step {
  const what = recursive ? `${path} and all in it` : path;
  return {
    what: `give ${what} to ${ownerName}`,
    shown: null,
    async run() {
      const changed: { readonly path: string; readonly info: Stats }[] = [];
      const undo = async () => {
        for (const { path: each, info } of changed.reverse()) {
          await lchown(each, info.uid, info.gid);
          if (!info.isSymbolicLink() && addMode !== 0) await chmod(each, info.mode & 0o7777);
        }
      };
      try {
        for await (const each of recursive ? treeOf(path) : [path]) {
          const info = await lstat(each);
          changed.push({ path: each, info });
          await lchown(each, owner.uid, owner.gid);
          if (!info.isSymbolicLink() && addMode !== 0) await chmod(each, (info.mode & 0o7777) | addMode);
        }
      } catch (cause) {
        await undo().catch(() => {});
        throw systemError(`cannot give it to ${ownerName}`, path, cause);
      }
      return undo;
    },
  };
}

/** Itself first. */
async function* treeOf(path: string): AsyncGenerator<string> {
  yield path;
  const info = await lstatOrNull(path);
  if (info?.isDirectory() !== true) return;
  for (const name of await readdir(path)) yield* treeOf(join(path, name));
}

/** Runs a program of this host; what it says on standard error is the reason of its failure. */
export function runCommand(argv: readonly string[], what: string, undoArgv: readonly string[] | null): Step {
  return {
    what: `${what}: ${argv.join(" ")}`,
    shown: null,
    async run() {
      await execute(argv);
      return undoArgv === null ? null : async () => void (await execute(undoArgv));
    },
  };
}

/** systemd gives a service 90 s to start before it gives up. Source: systemd-system.conf(5), DefaultTimeoutStartSec= */
const COMMAND_DEADLINE_MS = 100_000;

export async function execute(argv: readonly string[]): Promise<string> {
  let child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  try {
    child = Bun.spawn([...argv], { stdin: "ignore", stdout: "pipe", stderr: "pipe", timeout: COMMAND_DEADLINE_MS });
  } catch (cause) {
    throw systemError("cannot run the program", argv[0] ?? "", cause);
  }
  const [output, complaint, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  if (status === 0) return output;
  const [firstLine = ""] = complaint.trim().split("\n");
  throw new BakeliteError(
    "io",
    `it ended with ${child.signalCode ?? status}${firstLine === "" ? "" : `: ${firstLine}`}`,
    {
      subject: argv.join(" "),
    },
  );
}
