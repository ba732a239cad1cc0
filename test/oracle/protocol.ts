/**
 * What a writer process is told and what it says. Shared by `writer.ts` and `writer-process.ts`; `writer.py` speaks the
 * same. The specification is one JSON object in argv; commands are lines on standard input; on standard output come
 * `A <n> <writer> <seq> <before ms> <after ms>` for each commit after it returned, `R <json>` for each command in
 * order, `I <json>` when the writer is ready and when it ends, and `E <json string>` for anything that is wrong.
 */

export type WriterMode =
  | "normal" // an ordinary application: all kinds of transactions at a steady rate
  | "hostile" // everything that an application may do to whoever follows its WAL
  | "flat-out" // tiny commits as fast as possible
  | "exclusive" // normal, with phases of locking_mode=EXCLUSIVE
  | "reader"; // overlapping read transactions that check their own snapshot; commits nothing

export type CheckpointMode = "PASSIVE" | "FULL" | "RESTART" | "TRUNCATE";

export interface WriterSpec {
  readonly database: string;
  /** From 1; one process per id at a time. */
  readonly id: number;
  readonly seed: number;
  readonly mode: WriterMode;
  /** Commits per second; 0 is no limit. */
  readonly rate: number;
  readonly startPaused: boolean;
  /** These two count only for the writer that creates the file. */
  readonly pageSizeBytes: number;
  readonly autoVacuum: "none" | "full" | "incremental";
  readonly synchronous: "OFF" | "NORMAL" | "FULL";
  readonly walAutocheckpoint: number;
  readonly cacheSizePages: number;
  /**
   * Whether dirty pages go into the WAL before a ROLLBACK TO. An engine with a known fault there (SQLite 3.40.1, so
   * Debian 12's Python) commits frames without salts and checksums, and loses them in a crash; `when-sound` keeps such
   * an engine from it, so that a copy of the database and its WAL is worth what the writer was told.
   */
  readonly savepointSpills: "when-sound" | "always";
  /** How long a commit is tried again while another connection holds the write lock. */
  readonly busyTimeoutMs: number;
  /** About how many bytes of row content this writer keeps. */
  readonly targetBytes: number;
  /** Connections of a `reader`. */
  readonly readers: number;
  /** Read transactions of a `reader` last from 50 ms to this; hostile holds from 5 ms to this. */
  readonly maxHoldMs: number;
}

export type WriterOptions = Pick<WriterSpec, "database" | "id" | "seed"> & Partial<WriterSpec>;

/** The specification with everything that `options` leaves out as the mode wants it. */
export function writerSpec(options: WriterOptions): WriterSpec {
  const mode = options.mode ?? "normal";
  return {
    mode,
    rate: mode === "flat-out" || mode === "reader" ? 0 : 100,
    startPaused: false,
    pageSizeBytes: 4096,
    autoVacuum: mode === "hostile" ? "incremental" : "none",
    synchronous: "NORMAL",
    walAutocheckpoint: mode === "hostile" ? 5 : 1000,
    cacheSizePages: mode === "hostile" ? 10 : 100,
    savepointSpills: "when-sound",
    busyTimeoutMs: 10_000,
    targetBytes: 2 * 1024 * 1024,
    readers: 3,
    maxHoldMs: mode === "reader" ? 2000 : 500,
    ...options,
  };
}

/**
 * A commit that returned. It became visible at some moment from `beforeMs` to `afterMs`, both Unix milliseconds rounded
 * down: a commit with `beforeMs` greater than a moment certainly came after it.
 */
export interface Ack {
  /** Place in the total order of all writers' commits, from 1. */
  readonly n: number;
  readonly writer: number;
  /** Place in the order of this writer's commits, from 1. */
  readonly seq: number;
  readonly beforeMs: number;
  readonly afterMs: number;
}

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

export type WriterLine =
  | { readonly kind: "ack"; readonly ack: Ack }
  | { readonly kind: "reply"; readonly value: Json }
  | { readonly kind: "info"; readonly value: Json }
  | { readonly kind: "error"; readonly message: string };

export function encodeWriterLine(line: WriterLine): string {
  switch (line.kind) {
    case "ack": {
      const { n, writer, seq, beforeMs, afterMs } = line.ack;
      return `A ${n} ${writer} ${seq} ${beforeMs} ${afterMs}\n`;
    }
    case "reply":
      return `R ${JSON.stringify(line.value)}\n`;
    case "info":
      return `I ${JSON.stringify(line.value)}\n`;
    case "error":
      return `E ${JSON.stringify(line.message)}\n`;
  }
}

/** One line without its end. Throws for anything that a writer never says. */
export function parseWriterLine(line: string): WriterLine {
  const rest = line.slice(2);
  switch (line.slice(0, 2)) {
    case "A ": {
      const [n, writer, seq, beforeMs, afterMs] = rest.split(" ").map(Number);
      if (
        n === undefined ||
        writer === undefined ||
        seq === undefined ||
        beforeMs === undefined ||
        afterMs === undefined
      )
        break;
      return { kind: "ack", ack: { n, writer, seq, beforeMs, afterMs } };
    }
    case "R ":
      return { kind: "reply", value: JSON.parse(rest) as Json };
    case "I ":
      return { kind: "info", value: JSON.parse(rest) as Json };
    case "E ":
      return { kind: "error", message: String(JSON.parse(rest)) };
  }
  throw new Error(`a writer said what no writer says: ${JSON.stringify(line)}`);
}
