import { spawnSync } from "node:child_process";
import { closeSync, constants, openSync, readSync, writeSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { systemErrorCode } from "../../src/util/errors.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

export type ApplicationCommand =
  | { readonly do: "open"; readonly connection: number; readonly path: string }
  | { readonly do: "close"; readonly connection: number }
  | { readonly do: "sql"; readonly connection: number; readonly statements: readonly string[] };

export type Row = Readonly<Record<string, unknown>>;
export type ApplicationAnswer = { readonly rows: readonly Row[] } | { readonly error: string; readonly code: string };

/** What an application was told by SQLite. */
export class ApplicationError extends Error {
  override readonly name = "ApplicationError";
  /** `SQLITE_BUSY`, `SQLITE_BUSY_SNAPSHOT`, …; empty for anything else. */
  readonly code: string;

  constructor(message: string, code: string) {
    super(message);
    this.code = code;
  }
}

const PROGRAM = fileURLToPath(new URL("application-process.ts", import.meta.url));
const ANSWER_DEADLINE_MS = 20_000;
const POLL_MS = 0.1;

/**
 * An application in a process of its own that is told each step and has done it when the call returns. The calls are
 * synchronous, so a test can put a step of the application between any two steps of ours, even inside a method that
 * never lets go of the event loop.
 */
export class Application implements AsyncDisposable {
  readonly #process: Bun.Subprocess;
  readonly #directory: TemporaryDirectory;
  readonly #commands: number;
  readonly #answers: number;
  readonly #bytes = new Uint8Array(64 * 1024);
  #unread = "";
  #connections = 0;

  private constructor(directory: TemporaryDirectory) {
    const [commands, answers] = [directory.file("commands"), directory.file("answers")];
    const made = spawnSync("mkfifo", [commands, answers]);
    if (made.status !== 0) throw new Error(`mkfifo failed: ${made.error?.message ?? made.stderr.toString()}`);
    this.#directory = directory;
    // Opened for both directions neither waits for the other side.
    this.#commands = openSync(commands, constants.O_RDWR);
    this.#answers = openSync(answers, constants.O_RDWR | constants.O_NONBLOCK);
    this.#process = Bun.spawn([process.execPath, PROGRAM, commands, answers], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "inherit",
    });
  }

  static async start(): Promise<Application> {
    return new Application(await temporaryDirectory("application"));
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** A connection of the application's. The file is created when it does not exist. */
  connect(path: string): ApplicationConnection {
    const connection = ++this.#connections;
    this.ask({ do: "open", connection, path });
    return new ApplicationConnection(this, connection);
  }

  ask(command: ApplicationCommand): readonly Row[] {
    writeSync(this.#commands, `${JSON.stringify(command)}\n`);
    const answer = JSON.parse(this.#readLine(command)) as ApplicationAnswer;
    if ("error" in answer) throw new ApplicationError(`${answer.error} (${JSON.stringify(command)})`, answer.code);
    return answer.rows;
  }

  /** Ends the process without closing anything, as a crash does. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
    closeSync(this.#commands);
    closeSync(this.#answers);
    await this.#directory[Symbol.asyncDispose]();
  }

  #readLine(command: ApplicationCommand): string {
    const untilMs = performance.now() + ANSWER_DEADLINE_MS;
    for (;;) {
      const end = this.#unread.indexOf("\n");
      if (end >= 0) {
        const line = this.#unread.slice(0, end);
        this.#unread = this.#unread.slice(end + 1);
        return line;
      }
      const got = this.#readSome();
      this.#unread += new TextDecoder().decode(this.#bytes.subarray(0, got));
      if (got > 0) continue;
      if (performance.now() > untilMs) throw new Error(`no answer to ${JSON.stringify(command)}`);
      Bun.sleepSync(POLL_MS);
    }
  }

  #readSome(): number {
    try {
      return readSync(this.#answers, this.#bytes);
    } catch (error) {
      if (systemErrorCode(error) !== "EAGAIN") throw error;
      return 0;
    }
  }
}

export interface CheckpointAnswer {
  readonly busy: boolean;
  readonly committed: number;
  readonly backfilled: number;
}

export class ApplicationConnection {
  readonly #application: Application;
  readonly #connection: number;

  constructor(application: Application, connection: number) {
    this.#application = application;
    this.#connection = connection;
  }

  /** Each statement in turn; the rows of the last. Throws ApplicationError. */
  run(...statements: readonly string[]): readonly Row[] {
    return this.#application.ask({ do: "sql", connection: this.#connection, statements });
  }

  /** The code that SQLite fails with, or "done". */
  attempt(sql: string): string {
    try {
      this.run(sql);
      return "done";
    } catch (error) {
      if (error instanceof ApplicationError) return error.code;
      throw error;
    }
  }

  checkpoint(mode: "NOOP" | "PASSIVE" | "FULL" | "RESTART" | "TRUNCATE"): CheckpointAnswer {
    const row = this.run(`PRAGMA wal_checkpoint(${mode})`)[0];
    return { busy: row?.["busy"] !== 0, committed: Number(row?.["log"]), backfilled: Number(row?.["checkpointed"]) };
  }

  /** A second call does nothing. */
  close(): void {
    this.#application.ask({ do: "close", connection: this.#connection });
  }
}
