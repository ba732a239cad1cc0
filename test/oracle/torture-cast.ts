import { fileURLToPath } from "node:url";
import type { Random } from "../support/random.ts";
import type { Ack, WriterSpec } from "./protocol.ts";
import { allAcks, type StartWriterOptions, startWriter, type WriterProcess } from "./writer-process.ts";

type Role = Omit<StartWriterOptions, "database" | "id" | "seed">;

export type RoleName = keyof typeof ROLES;

export interface CastOptions {
  readonly database: string;
  readonly roles: readonly RoleName[];
  /** Of rows that are there from the beginning, so that a full backup takes its time. */
  readonly ballastBytes: number;
  readonly random: Random;
  /** What all of them get beside their role; page size and auto_vacuum are the first one's to choose. */
  readonly common: Partial<Pick<WriterSpec, "pageSizeBytes" | "autoVacuum" | "targetBytes" | "rate">>;
}

interface Member {
  readonly id: number;
  readonly role: Role;
  current: WriterProcess;
  /** Between its kill and the next one's start. */
  isAway: boolean;
}

const ROLES = {
  normal: { mode: "normal" },
  hostile: { mode: "hostile" },
  python: { mode: "normal", engine: "python" },
  "flat-out": { mode: "flat-out" },
  reader: { mode: "reader" },
  "hostile-python": { mode: "hostile", engine: "python" },
  /** Has to be alone: with it there is no flipper either. */
  exclusive: { mode: "exclusive" },
} as const satisfies Readonly<Record<string, Role>>;

const FLIPPER = fileURLToPath(new URL("torture-flipper.ts", import.meta.url));

export function isRoleName(name: string): name is RoleName {
  return name in ROLES;
}

/** A cast of this size: one of each kind in turn, the first of them one that commits. */
export function rolesFor(count: number): readonly RoleName[] {
  const names = Object.keys(ROLES)
    .filter(isRoleName)
    .filter((name) => name !== "exclusive");
  return Array.from({ length: count }, (_, i) => names[i % names.length] ?? "normal");
}

/** The applications of one torture: writers in processes of their own, which may be killed and come back under their id. */
export class Cast implements AsyncDisposable {
  readonly #options: CastOptions;
  readonly #members: Member[] = [];
  /** All that ever ran: what a killed one was told counts for ever. */
  readonly #all: WriterProcess[] = [];
  #flipper: Flipper | null = null;
  #kills = 0;

  private constructor(options: CastOptions) {
    this.#options = options;
  }

  static async start(options: CastOptions): Promise<Cast> {
    const cast = new Cast(options);
    try {
      for (const [i, name] of options.roles.entries()) {
        const role = ROLES[name];
        cast.#members.push({ id: i + 1, role, current: await cast.#startWriter(i + 1, role), isAway: false });
      }
      await cast.#startFlipper();
    } catch (error) {
      await cast[Symbol.asyncDispose]();
      throw error;
    }
    return cast;
  }

  get acks(): readonly Ack[] {
    return allAcks(this.#all);
  }

  get kills(): number {
    return this.#kills;
  }

  /** Of one that commits, so that it may be asked for a checkpoint. */
  get first(): WriterProcess {
    const member = this.#members[0];
    if (member === undefined) throw new Error("the cast is empty");
    return member.current;
  }

  /** Throws when one has ended, or found something wrong, although nobody killed it. */
  async check(): Promise<void> {
    for (const { current, isAway } of this.#members) {
      if (isAway) continue;
      await current.checkRunning();
      const [problem] = current.errors;
      if (problem !== undefined) throw new Error(`${current.label}: ${problem}`);
    }
    await this.#flipper?.check();
  }

  /** No transaction is open once this resolves, and every commit that returned is in `acks`. */
  async pause(): Promise<void> {
    await this.#flipper?.stop();
    this.#flipper = null;
    await Promise.all(this.#members.map(({ current }) => current.pause()));
  }

  async resume(): Promise<void> {
    await Promise.all(this.#members.map(({ current }) => current.resume()));
    await this.#startFlipper();
  }

  /** SIGKILL in the middle of whatever it does; another one goes on with the same id. */
  async killOne(random: Random): Promise<void> {
    const member = random.pick(this.#members);
    member.isAway = true;
    await member.current.kill();
    this.#kills++;
    await Bun.sleep(random.integer(0, 300));
    member.current = await this.#startWriter(member.id, member.role);
    member.isAway = false;
  }

  /** SIGKILL of all at once, `meanwhile`, and then all come back: the first of them recovers the WAL. */
  async crash(meanwhile: () => Promise<void>): Promise<void> {
    for (const member of this.#members) member.isAway = true;
    const flipper = this.#flipper;
    this.#flipper = null;
    await Promise.all([flipper?.[Symbol.asyncDispose](), ...this.#members.map(({ current }) => current.kill())]);
    await meanwhile();
    for (const member of this.#members) {
      member.current = await this.#startWriter(member.id, member.role);
      member.isAway = false;
    }
    await this.#startFlipper();
  }

  /** Ends all in good order; throws what any of them found wrong. */
  async stop(): Promise<void> {
    await this.#flipper?.stop();
    this.#flipper = null;
    for (const { current } of this.#members) await current.stop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#flipper?.[Symbol.asyncDispose]();
    await Promise.all(this.#all.map((writer) => writer[Symbol.asyncDispose]()));
  }

  async #startFlipper(): Promise<void> {
    const { roles, database, ballastBytes } = this.#options;
    if (roles.includes("exclusive")) return;
    this.#flipper = new Flipper(database, ballastBytes);
    await this.#flipper.untilReady();
  }

  async #startWriter(id: number, role: Role): Promise<WriterProcess> {
    const { database, random, common } = this.#options;
    const seed = random.fork(`writer ${id} ${this.#all.length}`).integer(1, 2 ** 31);
    const writer = await startWriter({ ...role, ...common, database, id, seed });
    this.#all.push(writer);
    return writer;
  }
}

/** A process that changes pages and changes them back. It is not numbered: it ends when the others pause. */
class Flipper implements AsyncDisposable {
  readonly #process: Bun.Subprocess<"pipe", "pipe", "pipe">;
  readonly #complaints: Promise<string>;

  constructor(database: string, ballastBytes: number) {
    this.#process = Bun.spawn([process.execPath, FLIPPER, database, String(ballastBytes)], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    });
    this.#complaints = this.#process.stderr.text();
  }

  /** Its rows are there. */
  async untilReady(): Promise<void> {
    const { value } = await this.#process.stdout.getReader().read();
    if (value === undefined) throw new Error(`the flipper was not ready: ${await this.#complaints}`);
  }

  async check(): Promise<void> {
    const { exitCode, signalCode } = this.#process;
    if (exitCode !== null || signalCode !== null)
      throw new Error(`the flipper ended with ${signalCode ?? exitCode}: ${await this.#complaints}`);
  }

  async stop(): Promise<void> {
    await this.#process.stdin.end();
    const status = await this.#process.exited;
    if (status !== 0) throw new Error(`the flipper ended with ${status}: ${await this.#complaints}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null)
      process.kill(this.#process.pid, "SIGKILL");
    await this.#process.exited;
  }
}
