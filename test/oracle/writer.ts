/** An application for the tests: `bun writer.ts '<WriterSpec as JSON>'`. See protocol.ts for what it obeys and says. */
import { Database } from "bun:sqlite";
import { type Random, seededRandom } from "../support/random.ts";
import { Channel } from "./channel.ts";
import { Hostility } from "./hostility.ts";
import {
  type Ack,
  type CheckpointMode,
  type Json,
  type WriterOptions,
  type WriterSpec,
  writerSpec,
} from "./protocol.ts";
import { Readers } from "./readers.ts";
import { BUSY_SLICE_MS, isBusy, numberOf, OracleStore, rowAsJson } from "./store.ts";
import { Workload } from "./workload.ts";

const CHECKPOINT_MODES: readonly string[] = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] satisfies CheckpointMode[];
/** How far a writer that fell behind its rate may catch up. */
const MAX_CATCH_UP_MS = 1000;
/** How long an exclusive phase waits for the others to be gone. */
const EXCLUSIVE_PATIENCE_MS = 200;

/** One run of the program, from ready to stopped. */
class Writer {
  readonly #spec: WriterSpec;
  readonly #random: Random;
  readonly #channel: Channel;
  readonly #store: OracleStore;
  readonly #workload: Workload;
  readonly #hostility: Hostility;
  readonly #readers: Readers;
  readonly #startMs = performance.now();
  #paused: boolean;
  #stopping = false;
  #ratePerSecond: number;
  #nextAtMs = performance.now();
  #exclusive = false;
  #nextPhaseAtMs = 0;
  #exclusivePhaseCount = 0;
  #commitCount = 0;

  constructor(store: OracleStore, channel: Channel) {
    const random = seededRandom(store.spec.seed).fork(store.spec.id);
    this.#random = random.fork("phases");
    this.#spec = store.spec;
    this.#channel = channel;
    this.#store = store;
    this.#workload = new Workload(store, random.fork("workload"));
    this.#hostility = new Hostility(store, random.fork("hostility"));
    this.#readers = new Readers(store.spec, random.fork("readers"), channel);
    this.#paused = store.spec.startPaused;
    this.#ratePerSecond = store.spec.rate;
  }

  async run(): Promise<void> {
    while (!this.#stopping) {
      await this.#channel.breathe();
      await this.#obeyAll();
      if (this.#stopping) break;
      if (this.#paused) await this.#channel.wait(1000);
      else await this.#work();
    }
    this.#rest();
    this.#store.disconnect();
    this.#channel.inform({ state: "stopped", ...this.#statistics() });
  }

  async #work(): Promise<void> {
    if (this.#spec.mode === "reader") {
      this.#readers.step();
      await this.#channel.wait(10);
      return;
    }
    const earlyMs = this.#nextAtMs - performance.now();
    if (earlyMs > 0) return await this.#channel.wait(earlyMs);
    if (this.#spec.mode === "hostile") await this.#hostility.act();
    if (this.#spec.mode === "exclusive") await this.#exclusivePhases();
    await this.#commitOnce();
    this.#pace();
  }

  /** One transaction of the workload; null when it was one that is rolled back. */
  async #commitOnce(): Promise<Ack | null> {
    const ack = await this.#workload.step();
    if (ack === null) return null;
    this.#commitCount += 1;
    this.#channel.acknowledge(ack);
    return ack;
  }

  #pace(): void {
    const nowMs = performance.now();
    if (this.#ratePerSecond === 0) this.#nextAtMs = nowMs;
    else this.#nextAtMs = Math.max(this.#nextAtMs, nowMs - MAX_CATCH_UP_MS) + 1000 / this.#ratePerSecond;
  }

  async #obeyAll(): Promise<void> {
    if (this.#channel.ended) this.#stopping = true;
    for (let line = this.#channel.nextCommand(); line !== null && !this.#stopping; line = this.#channel.nextCommand()) {
      let answer: Json;
      try {
        answer = await this.#obey(line);
      } catch (error) {
        answer = { error: error instanceof Error ? error.message : String(error), busy: isBusy(error) };
      }
      this.#channel.reply(answer);
    }
  }

  async #obey(line: string): Promise<Json> {
    const space = line.indexOf(" ");
    const [verb, argument] = space < 0 ? [line, ""] : [line.slice(0, space), line.slice(space + 1).trim()];
    switch (verb) {
      case "pause":
        this.#paused = true;
        this.#rest();
        return this.#statistics();
      case "resume":
        await this.#store.connect();
        this.#paused = false;
        this.#nextAtMs = performance.now();
        return {};
      case "rate":
        this.#ratePerSecond = Number(argument);
        this.#nextAtMs = performance.now();
        return {};
      case "burst":
        return await this.#burst(Number(argument));
      case "sql":
        await this.#store.connect();
        return { rows: (await this.#store.retryBusy(() => this.#store.connection.once(argument))).map(rowAsJson) };
      case "checkpoint":
        return await this.#checkpoint(argument);
      case "disconnect":
        this.#paused = true;
        this.#rest();
        this.#store.disconnect();
        return {};
      case "connect":
        await this.#store.connect();
        return {};
      case "statistics":
        return this.#statistics();
      case "stop":
        this.#stopping = true;
        return {};
      default:
        throw new Error(`no such command: ${line}`);
    }
  }

  /** So many commits without regard to the rate, paused or not; the last one's place in the total order. */
  async #burst(count: number): Promise<Json> {
    await this.#store.connect();
    let last: Ack | null = null;
    for (let done = 0; done < count; ) {
      const ack = await this.#commitOnce();
      if (ack !== null) {
        done += 1;
        last = ack;
      }
      await this.#channel.breathe();
    }
    return last === null ? {} : { n: last.n, seq: last.seq };
  }

  /** `<mode> [<busy timeout in ms>]`: SQLite itself waits so long for readers and writers in the way. */
  async #checkpoint(argument: string): Promise<Json> {
    const [mode = "", busyTimeoutMs = `${BUSY_SLICE_MS}`] = argument.toUpperCase().split(" ");
    if (!CHECKPOINT_MODES.includes(mode)) throw new Error(`no such checkpoint: ${mode}`);
    await this.#store.connect();
    const { connection } = this.#store;
    connection.once(`PRAGMA busy_timeout=${Number(busyTimeoutMs)}`);
    const row = connection.once(`PRAGMA wal_checkpoint(${mode})`)[0];
    connection.once(`PRAGMA busy_timeout=${BUSY_SLICE_MS}`);
    return {
      busy: numberOf(row, "busy") !== 0,
      log: numberOf(row, "log"),
      checkpointed: numberOf(row, "checkpointed"),
    };
  }

  /** Reconnects with locking_mode=EXCLUSIVE for a while, if nobody else is connected, then without it for a while. */
  async #exclusivePhases(): Promise<void> {
    const nowMs = performance.now();
    if (nowMs < this.#nextPhaseAtMs) return;
    this.#exclusive = !this.#exclusive;
    this.#store.disconnect();
    try {
      await this.#store.connect(this.#exclusive ? { exclusive: true, timeoutMs: EXCLUSIVE_PATIENCE_MS } : {});
      if (this.#exclusive) this.#exclusivePhaseCount += 1;
    } catch (error) {
      if (!isBusy(error) || !this.#exclusive) throw error;
      this.#exclusive = false;
      await this.#store.connect();
    }
    this.#nextPhaseAtMs = performance.now() + this.#random.integer(100, 600);
  }

  /** Gives back everything but the idle connection: no read transaction stays open. */
  #rest(): void {
    this.#hostility.rest();
    this.#readers.rest();
  }

  #statistics(): { readonly [key: string]: Json } {
    return {
      commits: this.#commitCount,
      rollbacks: this.#workload.rollbackCount,
      snapshots: this.#readers.snapshotCount,
      exclusivePhases: this.#exclusivePhaseCount,
      hostile: { ...this.#hostility.counts },
      seconds: (performance.now() - this.#startMs) / 1000,
    };
  }
}

async function main(): Promise<void> {
  const channel = new Channel();
  try {
    const spec = writerSpec(JSON.parse(process.argv[2] ?? "{}") as WriterOptions);
    const random = seededRandom(spec.seed).fork(spec.id);
    const store = await OracleStore.open(spec, random.fork("store"), () => channel.pause());
    channel.inform({ state: "ready", engine: engineVersion(), spec: { ...spec } });
    await new Writer(store, channel).run();
    await channel.end();
    process.exit(0);
  } catch (error) {
    channel.complain(error instanceof Error ? (error.stack ?? error.message) : String(error));
    await channel.end();
    process.exit(1);
  }
}

function engineVersion(): string {
  using memory = new Database(":memory:");
  return `bun:sqlite ${memory.query<{ version: string }, []>("SELECT sqlite_version() AS version").get()?.version ?? "?"}`;
}

await main();
