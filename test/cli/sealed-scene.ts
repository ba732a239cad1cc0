import { expect } from "bun:test";
import { chmodSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { deriveSealKey, formatKeyText } from "../../src/format/envelope.ts";
import { type DaemonProcess, daemonConfig, runBakelite, startDaemon } from "../oracle/daemon-process.ts";
import { gradeRestore } from "../oracle/grade.ts";
import { startWriter, type WriterProcess } from "../oracle/writer-process.ts";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";

export interface TestKey {
  readonly text: string;
  readonly fingerprint: string;
  readonly path: string;
}

/** A database with a writer, its destinations, keys in files, and the executable for all commands. */
export class SealedScene implements AsyncDisposable {
  readonly directory: TemporaryDirectory;
  readonly writer: WriterProcess;
  readonly replicas: readonly string[];
  /** All that any command and daemon has printed. */
  printed = "";
  key: TestKey | null = null;
  acceptPlaintext = false;
  readonly #daemons: DaemonProcess[] = [];
  #restores = 0;

  private constructor(directory: TemporaryDirectory, writer: WriterProcess, replicas: readonly string[]) {
    this.directory = directory;
    this.writer = writer;
    this.replicas = replicas;
  }

  static async begin(destinationCount = 1): Promise<SealedScene> {
    const directory = await temporaryDirectory("sealed");
    const writer = await startWriter({ database: directory.file("app.db"), id: 1, seed: 7, startPaused: true });
    await writer.burst(3);
    const replicas = Array.from({ length: destinationCount }, (_, i) => directory.file(`replica-${i + 1}`));
    return new SealedScene(directory, writer, replicas);
  }

  get replica(): string {
    return this.replicas[0] ?? "";
  }

  get config(): string {
    return this.directory.file("bakelite.toml");
  }

  makeKey(seed: number): TestKey {
    const raw = new Uint8Array(32).fill(seed);
    const [text, path] = [formatKeyText(raw), this.directory.file(`key-${seed}.txt`)];
    writeFileSync(path, `${text}\n`);
    chmodSync(path, 0o600);
    return { text, path, fingerprint: deriveSealKey(raw).fingerprint };
  }

  #options() {
    const databases = [{ name: "app", path: this.directory.file("app.db"), replicas: this.replicas }];
    return { configPath: this.config, databases, program: "executable" as const, logLevel: "debug" as const };
  }

  writeConfig(): void {
    let text = daemonConfig({ ...this.#options(), ...(this.key === null ? {} : { keyFile: this.key.path }) });
    if (this.acceptPlaintext) text = text.replace(/(key_file = .*\n)/, "$1accept_plaintext = true\n");
    writeFileSync(this.config, text);
  }

  async run(...args: readonly string[]) {
    this.writeConfig();
    const result = await runBakelite("executable", [...args, "--config", this.config]);
    this.printed += result.stdout + result.stderr;
    return { ...result, output: result.stdout + result.stderr };
  }

  async start(): Promise<DaemonProcess> {
    const daemon = await startDaemon({ ...this.#options(), ...(this.key === null ? {} : { keyFile: this.key.path }) });
    this.#daemons.push(daemon);
    return daemon;
  }

  /** A daemon that has a full backup and everything that was committed; then stopped. */
  async backUp(commits = 3): Promise<DaemonProcess> {
    const daemon = await this.start();
    await daemon.untilStatus((status) => status.state === "live" && status.full_backup !== null, { what: "live" });
    for (let i = 1; i <= commits; i++) {
      const before = this.objects().length;
      await this.writer.burst(1);
      // One object for each, so that there is something to tamper with.
      await eventually(() => this.objects().length > before, { what: `change-set ${i}` });
    }
    await daemon.stop();
    return daemon;
  }

  /** The names of stored objects, without CURRENT and manifest, below the database's folder. */
  objects(replica = this.replica): readonly string[] {
    return ["full", "L0", "L1"].flatMap((folder) => {
      try {
        return readdirSync(join(replica, "app", folder))
          .filter((name) => !name.startsWith("."))
          .sort()
          .map((name) => `${folder}/${name}`);
      } catch {
        return [];
      }
    });
  }

  pathOf(object: string, replica = this.replica): string {
    return join(replica, "app", object);
  }

  /** Restores the latest state and lets the oracle grade it: everything that was acknowledged is there. */
  async restoreAll(): Promise<void> {
    const path = this.directory.file(`restored-${++this.#restores}.db`);
    const { status, output } = await this.run("restore", "--db", "app", "--output", path);
    expect([status, output]).toEqual([0, expect.stringContaining("restored app")]);
    gradeRestore({ path, acks: this.writer.acks, storedFloorN: this.writer.acks.at(-1)?.n ?? 0 });
  }

  async verify() {
    const { status, stdout } = await this.run("verify", "--db", "app", "--json");
    const [database] = JSON.parse(stdout).databases;
    return {
      status,
      kinds: database.problems.map(
        ({ kind, key }: { kind: string; key: string | null }) => `${kind} ${key}`,
      ) as string[],
      problems: database.problems as { kind: string; key: string | null; message: string; next_step: string }[],
      warnings: database.warnings.map(({ kind }: { kind: string }) => kind) as string[],
    };
  }

  /** All that any daemon has said. */
  get logs(): string {
    return this.#daemons
      .map((daemon) => daemon.log.map((line) => JSON.stringify(line)).join("\n") + daemon.complaints)
      .join("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const daemon of this.#daemons) await daemon[Symbol.asyncDispose]();
    await this.writer[Symbol.asyncDispose]();
    await this.directory[Symbol.asyncDispose]();
  }
}

/** Every file below `path`, links not followed. */
export function filesBelow(path: string): readonly string[] {
  return readdirSync(path, { recursive: true, encoding: "utf8" })
    .map((name) => join(path, name))
    .filter((name) => statSync(name, { throwIfNoEntry: false })?.isFile() === true);
}
