import { formatByteSize } from "./byte-sizes.ts";
import type { Clock } from "./clock.ts";
import { formatDuration } from "./durations.ts";
import { printable } from "./printable.ts";
import type { TextOutput } from "./text-output.ts";

export interface ProgressOptions {
  /** What is going on: `restoring app`. */
  readonly label: string;
  /** undefined while it is not known: no percentage and no ETA. */
  readonly totalBytes?: number;
  /** Standard error. Nothing at all is written unless it is a terminal. */
  readonly output: TextOutput;
  readonly clock: Clock;
}

/** A line that says how far some work has come. Disposing removes it from the screen. */
export interface Progress extends Disposable {
  /** `bytes` more are done. Cheap: may be called for every chunk. */
  add(bytes: number): void;
  setTotal(totalBytes: number): void;
}

const REDRAW_MS = 200;
/** The rate shown is that of about the last so many milliseconds. */
const RATE_MEMORY_MS = 3_000;
const CLEAR_LINE = "\r\u001b[2K";

export function createProgress(options: ProgressOptions): Progress {
  if (!options.output.isTerminal) return { add() {}, setTotal() {}, [Symbol.dispose]() {} };
  return new TerminalProgress(options);
}

class TerminalProgress implements Progress {
  readonly #options: ProgressOptions;
  #totalBytes: number | undefined;
  #doneBytes = 0;
  #drawnAtMs: number;
  #drawnBytes = 0;
  #bytesPerMs: number | undefined;

  constructor(options: ProgressOptions) {
    this.#options = options;
    this.#totalBytes = options.totalBytes;
    this.#drawnAtMs = options.clock.monotonicMs();
  }

  add(bytes: number): void {
    this.#doneBytes += bytes;
    const nowMs = this.#options.clock.monotonicMs();
    const elapsedMs = nowMs - this.#drawnAtMs;
    if (elapsedMs < REDRAW_MS) return;
    const rate = (this.#doneBytes - this.#drawnBytes) / elapsedMs;
    const weight = this.#bytesPerMs === undefined ? 1 : 1 - Math.exp(-elapsedMs / RATE_MEMORY_MS);
    this.#bytesPerMs = (this.#bytesPerMs ?? 0) * (1 - weight) + rate * weight;
    this.#drawnAtMs = nowMs;
    this.#drawnBytes = this.#doneBytes;
    this.#draw(this.#bytesPerMs);
  }

  setTotal(totalBytes: number): void {
    this.#totalBytes = totalBytes;
  }

  [Symbol.dispose](): void {
    this.#options.output.write(CLEAR_LINE);
  }

  #draw(bytesPerMs: number): void {
    const { label, output } = this.#options;
    const line = [
      printable(label),
      this.#totalBytes === undefined ? formatByteSize(this.#doneBytes) : this.#share(this.#totalBytes),
      `${formatByteSize(bytesPerMs * 1_000)}/s`,
      ...(this.#totalBytes === undefined || bytesPerMs <= 0 ? [] : [this.#eta(this.#totalBytes, bytesPerMs)]),
    ].join("  ");
    // One column stays free: a full line would wrap, and clearing would leave its first half.
    output.write(CLEAR_LINE + line.slice(0, Math.max(0, output.columns - 1)));
  }

  #share(totalBytes: number): string {
    const percent = totalBytes === 0 ? 100 : Math.min(100, Math.floor((this.#doneBytes / totalBytes) * 100));
    return `${formatByteSize(this.#doneBytes)} of ${formatByteSize(totalBytes)} (${percent}%)`;
  }

  #eta(totalBytes: number, bytesPerMs: number): string {
    return `ETA ${formatDuration(Math.max(0, totalBytes - this.#doneBytes) / bytesPerMs)}`;
  }
}
