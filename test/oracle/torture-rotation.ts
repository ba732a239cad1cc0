import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { deriveSealKey, formatKeyText, type SealKey } from "../../src/format/envelope.ts";
import { currentKey, manifestKey, PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { DOCUMENT_KINDS, documentKey, documentSeal } from "../../src/replica/reencrypt-documents.ts";
import type { Backend } from "../../src/storage/backend.ts";
import type { Random } from "../support/random.ts";
import type { TemporaryDirectory } from "../support/temporary-directory.ts";
import { bakeliteCommand, type Program, runBakelite } from "./daemon-process.ts";
import type { Reading, Readings } from "./torture-restores.ts";

/** A key, and the file that a config names. */
export interface Sealing {
  readonly keyFile: string;
  readonly sealKey: SealKey;
}

export interface RotationOptions {
  readonly directory: TemporaryDirectory;
  readonly database: string;
  readonly configPath: string;
  readonly program: Program;
  readonly random: Random;
  /** Begin with a key. */
  readonly sealed: boolean;
  /** A client of the destination. */
  readonly open: () => Backend;
  /** Where the destination is a directory: what lies there and no listing shows counts, too. */
  readonly folder: string | null;
  /** The line to the destination has faults, so that a run may have to be repeated. */
  readonly isLineFaulty: boolean;
}

/** What the torture does for a change of the encryption. */
export interface RotationWork {
  /** Writes the config that has this key, or none. */
  configure(sealing: Sealing | null): Promise<void>;
  /** A reencrypt was killed: restores with each of the ways that a user has now, and grades. */
  judgeInterrupted(ways: Ways): Promise<void>;
  tell(what: string): void;
}

export interface Ways {
  /** The old configuration and the new one: either restores the newest state, or says which key it takes. At least one restores it. */
  readonly oneOf: readonly Reading[];
  /** What restores it at every moment. */
  readonly always: readonly Reading[];
}

export interface RotationCounts {
  readonly rotations: number;
  /** SIGKILLs of `bakelite reencrypt`, and those that left objects under two seals. */
  readonly kills: number;
  readonly killsMidway: number;
}

/** How long the first run may take until it is killed; later ones are killed within what a whole one took. */
const FIRST_KILL_WITHIN_MS = 1000;
const MAX_KILLS = 3;
/** Over a line that has faults. */
const MAX_RUNS = 6;
/** What faults of the line may end as, and another run mends. */
const PROBLEMS_OF_A_LINE = ["unreachable", "not-deleted", "unreadable"];

/**
 * The encryption of one replica, changed by `bakelite reencrypt` in a circle: plaintext, one key, another key, plaintext. Some runs
 * are killed and followed by others; the last must end with status 0 and leave nothing under the old seal.
 */
export class Rotation {
  readonly #options: RotationOptions;
  readonly #random: Random;
  #sealing: Sealing | null;
  #readings: Readings;
  /** How many keys have followed each other since nothing was sealed. */
  #keysInTurn: number;
  #keyCount = 0;
  #rotations = 0;
  #kills = 0;
  #killsMidway = 0;
  #tookMs = FIRST_KILL_WITHIN_MS;

  private constructor(options: RotationOptions, sealing: Sealing | null) {
    this.#options = options;
    this.#random = options.random;
    this.#sealing = sealing;
    this.#keysInTurn = sealing === null ? 0 : 1;
    this.#readings = { ways: [readingWith(sealing)], isMoving: false };
  }

  static async begin(options: RotationOptions): Promise<Rotation> {
    return new Rotation(options, options.sealed ? await makeKey(options.directory, "key.txt") : null);
  }

  /** What is configured now. */
  get sealing(): Sealing | null {
    return this.#sealing;
  }

  /** How a user restores at this moment: another object as soon as that changes. */
  get readings(): Readings {
    return this.#readings;
  }

  get counts(): RotationCounts {
    return { rotations: this.#rotations, kills: this.#kills, killsMidway: this.#killsMidway };
  }

  /** The next encryption in the circle. No daemon runs. */
  async turn(work: RotationWork): Promise<void> {
    const old = this.#sealing;
    const next = await this.#next();
    const [from, to] = [readingWith(old), readingWith(next)];
    const encrypting = old === null && next !== null;
    const ways = { oneOf: [from, to], always: encrypting ? [{ ...to, acceptPlaintext: true }] : [] };
    work.tell(`reencrypt from ${from.seal} to ${to.seal}`);
    await work.configure(next);
    this.#sealing = next;
    this.#readings = { ways: encrypting ? ways.always : ways.oneOf, isMoving: true };
    const args = ["reencrypt", "--config", this.#options.configPath, "--db", this.#options.database, "--json"];
    if (old !== null) args.push("--old-key-file", old.keyFile);
    for (let kills = this.#random.integer(0, MAX_KILLS); kills > 0; kills--) {
      if (!(await this.#runAndKill(args, to.seal))) break;
      const seals = [...new Set((await this.#keys()).map(sealIn))].filter((seal) => seal !== null);
      if (seals.length > 1) this.#killsMidway++;
      work.tell(`killed a reencrypt, which left objects under ${seals.join(" and ") || "no seal"}`);
      await work.judgeInterrupted(ways);
    }
    await this.#runToItsEnd(args, work);
    await this.#checkNothingOld(to.seal);
    this.#readings = { ways: [to], isMoving: false };
    this.#rotations++;
  }

  async #next(): Promise<Sealing | null> {
    this.#keysInTurn = (this.#keysInTurn + 1) % 3;
    if (this.#keysInTurn === 0) return null;
    this.#keyCount++;
    return await makeKey(this.#options.directory, `key-${this.#keyCount}.txt`);
  }

  /** False when it was done before its time. */
  async #runAndKill(args: readonly string[], seal: string): Promise<boolean> {
    const otherCount = async () => (await this.#keys()).filter((key) => ![null, seal].includes(sealIn(key))).length;
    const othersBefore = await otherCount();
    const command = bakeliteCommand(this.#options.program, args);
    const child = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
    const output = Promise.all([child.stdout.text(), child.stderr.text()]);
    // Most of a short run is its start, in which nothing can go wrong.
    const drawn = this.#random.pick(["any", "writing", "writing", "deleting"] as const);
    // On a server all is deleted with one request, and a listing is no faster than that.
    const moment = drawn === "deleting" && this.#options.folder === null ? "writing" : drawn;
    const share = { any: 1, writing: 0.5, deleting: 0 }[moment] * this.#random.next();
    const isReached = {
      any: async () => true,
      writing: async () => (await this.#keys()).some((key) => sealIn(key) === seal),
      deleting: async () => (await otherCount()) < othersBefore,
    }[moment];
    while (child.exitCode === null && !(await isReached())) await Bun.sleep(1);
    await Promise.race([child.exited, Bun.sleep(share * this.#tookMs)]);
    const isDone = child.exitCode !== null;
    if (!isDone) child.kill("SIGKILL");
    await child.exited;
    const [stdout, stderr] = await output;
    if (child.signalCode !== "SIGKILL") {
      if (child.exitCode !== 0 && !this.#options.isLineFaulty)
        throw new Error(`\`bakelite reencrypt\` ended with status ${child.exitCode}: ${stderr}${stdout}`);
      return false;
    }
    this.#kills++;
    return true;
  }

  async #runToItsEnd(args: readonly string[], { tell }: RotationWork): Promise<void> {
    for (let run = 1; ; run++) {
      const startedMs = performance.now();
      const { status, stdout, stderr } = await runBakelite(this.#options.program, args);
      if (status === 0) {
        this.#tookMs = performance.now() - startedMs;
        return;
      }
      const mayRepeat = this.#options.isLineFaulty && run < MAX_RUNS && isOfTheLine(stdout);
      if (!mayRepeat) throw new Error(`\`bakelite reencrypt\` ended with status ${status}: ${stderr}${stdout}`);
      tell(`a reencrypt met faults of the line and runs again: ${stdout}`);
    }
  }

  /** Every object's name ends in the seal, and the documents' headers say it. */
  async #checkNothingOld(seal: string): Promise<void> {
    const others = (await this.#keys()).filter((key) => sealIn(key) !== seal && !this.#isDocument(key));
    if (others.length > 0)
      throw new Error(
        `after a reencrypt to ${seal} there are ${others.length} others: ${others.slice(0, 5).join(", ")}`,
      );
    const backend = this.#options.open();
    for (const key of DOCUMENT_KINDS.map((kind) => documentKey(this.#options.database, kind))) {
      const found = await documentSeal(backend, key, {});
      if (found !== null && found !== seal)
        throw new Error(`after a reencrypt to ${seal} ${key} has the seal ${found}`);
    }
  }

  #isDocument(key: string): boolean {
    const { database } = this.#options;
    return key === currentKey(database) || key === manifestKey(database);
  }

  /** Everything below the database's folder; in a directory also what no listing shows. */
  async #keys(): Promise<readonly string[]> {
    const { database, folder, open } = this.#options;
    if (folder === null) return (await Array.fromAsync(open().list(`${database}/`))).map(({ key }) => key);
    const entries = await readdir(join(folder, database), { recursive: true, withFileTypes: true }).catch(() => []);
    const files = entries.filter((entry) => entry.isFile());
    return files.map((file) => join(file.parentPath, file.name).slice(folder.length + 1));
  }
}

function readingWith(sealing: Sealing | null): Reading {
  const sealKey = sealing?.sealKey ?? null;
  return { sealKey, seal: sealKey?.fingerprint ?? PLAINTEXT_SEAL, acceptPlaintext: sealKey === null };
}

/** The seal in an object's or mark's name; null for what has none. */
function sealIn(key: string): string | null {
  return /\/[0-9-]+\.(p|[0-9a-f]{8})$/.exec(key)?.[1] ?? null;
}

/** Whether all that `--json` complains of may come of a request that failed. */
function isOfTheLine(stdout: string): boolean {
  const { databases } = JSON.parse(stdout) as {
    readonly databases: readonly {
      readonly error: { readonly code: string } | null;
      readonly problems: readonly { readonly kind: string }[];
    }[];
  };
  return databases.every(
    ({ error, problems }) =>
      (error === null || error.code === "storage-unreachable") &&
      problems.every(({ kind }) => PROBLEMS_OF_A_LINE.includes(kind)),
  );
}

async function makeKey(directory: TemporaryDirectory, name: string): Promise<Sealing> {
  const keyFile = directory.file(name);
  const rawKey = crypto.getRandomValues(new Uint8Array(32));
  await writeFile(keyFile, `${formatKeyText(rawKey)}\n`, { mode: 0o600 });
  return { keyFile, sealKey: deriveSealKey(rawKey) };
}
